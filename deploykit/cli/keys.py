"""The commands `deploykit keys ...`, which change the file of the clients' keys."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli.output import err, out, print_table

if TYPE_CHECKING:
    from deploykit.serving.access.keys import Key

app = typer.Typer(help="Keys of the clients of a service.", no_args_is_help=True)
MAX_DAYS = 36_500  # that a key may be valid: a century, which is within the range of `datetime`
KeyFile = Annotated[
    Path | None, typer.Option("--keys", envvar="DEPLOYKIT_KEYS", help="The key file (default: your own).")
]
IdOrClient = Annotated[str, typer.Argument(metavar="ID|CLIENT", help="A key's id, or a client for all its keys.")]


@app.command("add")
def add_key(
    client: Annotated[str, typer.Argument(help="Who the key is for.")],
    keys: KeyFile = None,
    scopes: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", help="predict, explain, metrics, docs, admin; may be repeated. Default: predict and metrics."
        ),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, max=MAX_DAYS, help="Days until it expires.")] = None,
    starts: Annotated[datetime | None, typer.Option("--from", help="When it begins to be valid, in UTC.")] = None,
    per_minute: Annotated[int | None, typer.Option(help="Requests allowed in a minute.")] = None,
    per_day: Annotated[int | None, typer.Option(help="Requests allowed in a day.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Tokens allowed in a minute.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests allowed at the same time, in each replica.")] = None,
) -> None:
    """Create a key and print it.

    Only its hash is stored, so it cannot be shown again.
    """
    from deploykit.serving.access import keys as store

    path = keys or store.default_key_file()
    expires = datetime.now(UTC) + timedelta(days=days) if days is not None else None
    text = store.add(
        path,
        client,
        scopes or ("predict", "metrics"),
        not_before=starts and starts.replace(tzinfo=UTC),
        expires=expires,
        requests_per_minute=per_minute,
        requests_per_day=per_day,
        tokens_per_minute=tokens_per_minute,
        concurrency=concurrency,
    )
    err.print(f"stored in {path}; the key is shown only now:", markup=False)
    sys.stdout.write(text + "\n")


@app.command("list")
def list_keys(keys: KeyFile = None) -> None:
    """List the keys, their clients and what they allow."""
    from deploykit.serving.access import keys as store

    rows = []
    for key in store.read_keys(keys or store.default_key_file()):
        expires = f"{key.expires:%Y-%m-%d}" if key.expires else "never"
        rows.append(
            (key.id, key.client, ", ".join(key.scopes), f"{key.created:%Y-%m-%d}", expires, _describe_limits(key))
        )
    print_table(("id", "client", "scopes", "created", "expires", "limits"), rows)


def _describe_limits(key: "Key") -> str:
    """Returns what restricts a key: that it is disabled or not yet valid, and its rates."""
    limits = {
        "a minute": key.requests_per_minute,
        "a day": key.requests_per_day,
        "tokens a minute": key.tokens_per_minute,
        "at once": key.concurrency,
    }
    state = ["disabled"] if key.disabled else [f"from {key.not_before:%Y-%m-%d %H:%M}"] if key.not_before else []
    return ", ".join([*state, *(f"{limit:,} {unit}" for unit, limit in limits.items() if limit)]) or "none"


@app.command("rotate")
def rotate_key(
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    keys: KeyFile = None,
    hours: Annotated[float, typer.Option(min=0, max=24 * MAX_DAYS, help="How long the old key stays valid.")] = 24.0,
) -> None:
    """Replace a key by a new one with the same rights.

    Prints the new key; the old one expires.
    """
    from deploykit.serving.access import keys as store

    text = store.rotate(keys or store.default_key_file(), key, timedelta(hours=hours))
    err.print(f"the old key {key} expires in {hours:g} hours; the new one is shown only now:", markup=False)
    sys.stdout.write(text + "\n")


@app.command("disable")
def disable_key(key: IdOrClient, keys: KeyFile = None) -> None:
    """Disable keys until they are enabled again.

    A running service notices within a second.
    """
    _set_disabled(key, keys, disabled=True)


@app.command("enable")
def enable_key(key: IdOrClient, keys: KeyFile = None) -> None:
    """Enable keys that were disabled."""
    _set_disabled(key, keys, disabled=False)


def _set_disabled(key: str, path: Path | None, *, disabled: bool) -> None:
    from deploykit.serving.access import keys as store

    switched = store.set_disabled(path or store.default_key_file(), key, disabled=disabled)
    _print_keys("disabled" if disabled else "enabled", switched)


@app.command("revoke")
def revoke_key(key: IdOrClient, keys: KeyFile = None) -> None:
    """Revoke keys for good.

    A running service notices within a second.
    """
    from deploykit.serving.access import keys as store

    _print_keys("revoked", store.revoke(keys or store.default_key_file(), key))


def _print_keys(state: str, keys: "Sequence[Key]") -> None:
    out.print(f"{state}: {', '.join(f'{key.id} ({key.client})' for key in keys)}", markup=False)
