"""The commands `deploykit keys …`: parse, call, print."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli_print import err, out, print_table

app = typer.Typer(help="Keys that clients of a service present.", no_args_is_help=True)
KeyFile = Annotated[
    Path | None, typer.Option("--keys", envvar="DEPLOYKIT_KEYS", help="The key file (default: your own).")
]


@app.command("add")
def add_key(
    client: Annotated[str, typer.Argument(help="Who the key is for.")],
    keys: KeyFile = None,
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help="predict, metrics, docs; may be repeated.")
    ] = None,
    days: Annotated[int | None, typer.Option(help="Days until it expires.")] = None,
    per_minute: Annotated[int | None, typer.Option(help="Requests allowed in a minute.")] = None,
) -> None:
    """Make a key and print it; only its hash is stored, so this is the only time that it can be seen."""
    from deploykit.serving import keys as store

    path = keys or store.default_path()
    expires = datetime.now(UTC) + timedelta(days=days) if days else None
    text = store.add(path, client, scopes or ("predict", "metrics"), expires=expires, requests_per_minute=per_minute)
    err.print(f"stored in {path}; the key is shown only now:", markup=False)
    sys.stdout.write(text + "\n")


@app.command("list")
def list_keys(keys: KeyFile = None) -> None:
    """List the keys: who has them and what they allow, never the keys themselves."""
    from deploykit.serving import keys as store

    found = store.listing(keys or store.default_path())
    shown = [
        (
            key.id,
            key.client,
            ", ".join(key.scopes),
            f"{key.created:%Y-%m-%d}",
            f"{key.expires:%Y-%m-%d}" if key.expires else "never",
            str(key.requests_per_minute or "no limit"),
        )
        for key in found
    ]
    print_table(("id", "client", "scopes", "created", "expires", "requests per minute"), shown)


@app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="ID|CLIENT", help="A key's id, or a client: all its keys.")],
    keys: KeyFile = None,
) -> None:
    """Revoke keys; a running service notices within seconds."""
    from deploykit.serving import keys as store

    gone = store.revoke(keys or store.default_path(), key)
    out.print(f"revoked: {', '.join(f'{found.id} ({found.client})' for found in gone)}", markup=False)
