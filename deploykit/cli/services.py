"""The commands around a service: parse, call, print."""

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
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Let everybody in.")] = False,
) -> None:
    """Serve a package until it is stopped."""
    from deploykit.serving import launch

    out.print(f"starting {package} on {host}, port {port}; stop with Ctrl-C", markup=False)
    launch.become(package, host=host, port=port, keys=keys, auth=not no_auth)


@app.command()
def drain(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that the service listens on.")] = 3000,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until the load balancer has noticed.")] = 0.0,
) -> None:
    """Take a service out of its load balancer.

    Its readiness probe fails from now on; it answers requests until it is stopped.
    """
    from deploykit.serving import launch

    launch.drain(port, wait)
    out.print(f"the service on port {port} is not ready any more; it can be stopped", markup=False)


@app.command()
def records(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What DEPLOYKIT_RECORDS names.")],
    to: Annotated[Path | None, typer.Option(help="A file for rows of text and label, as a recipe reads them.")] = None,
) -> None:
    """Turn records and feedback into labelled rows.

    Joins the records that services kept with the feedback on them, and says how often answers were right.
    """
    from deploykit.data import feedback

    found = feedback.join(folder)
    print_table(("model", "records", "with feedback", "accuracy on these"), feedback.table(found))
    if found.lost or found.broken:
        err.print(f"{found.lost} feedback without a record, {found.broken} broken lines: left out", markup=False)
    if to is not None:
        feedback.write(found, to)
        out.print(f"{to} holds {len(found.rows)} labelled rows.", markup=False)
