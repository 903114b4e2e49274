"""The commands that start and drain services, and that read their records."""

from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli.keys import KeyFile
from deploykit.cli.output import ArtifactDir, err, out, print_table

app = typer.Typer()


@app.command()
def serve(
    package: ArtifactDir,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3000,
    keys: KeyFile = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Serve without access control.")] = False,
) -> None:
    """Serve a package until it is stopped."""
    from deploykit.serving import launch

    out.print(f"starting {package} on {host}, port {port}; stop with Ctrl-C", markup=False)
    launch.replace_process(package, host=host, port=port, keys=keys, auth=not no_auth)


@app.command()
def drain(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that the service listens on.")] = 3000,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the load balancer.")] = 0.0,
) -> None:
    """Drain a service, so that it can be stopped.

    Its readiness probe fails, so that the load balancer sends new requests elsewhere. It still answers requests.
    """
    from deploykit.serving import launch

    launch.drain(port, wait)
    out.print(f"the service on port {port} is no longer ready; it can be stopped", markup=False)


@app.command()
def records(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of DEPLOYKIT_RECORDS.")],
    to: Annotated[Path | None, typer.Option(help="File to write the labelled rows to, for a recipe.")] = None,
) -> None:
    """Turn records and feedback into labelled rows.

    Joins the records of services with the feedback on them, and reports the accuracy.
    """
    from deploykit.data import feedback

    joined = feedback.join(folder)
    print_table(("model", "records", "with feedback", "accuracy on these"), feedback.tabulate(joined))
    unmatched, broken = joined.unmatched_feedback, joined.broken_lines
    if unmatched or broken:
        err.print(f"left out: {unmatched} feedback without a record, {broken} broken lines", markup=False)
    if to is not None:
        feedback.write(joined, to)
        out.print(f"{to} holds {len(joined.rows)} labelled rows.", markup=False)
