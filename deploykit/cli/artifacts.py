"""The commands on artifacts and on this machine: parse, call, print."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli.output import ArtifactDir, out, print_table, short

app = typer.Typer()


@app.command()
def show(
    artifact: ArtifactDir, as_json: Annotated[bool, typer.Option("--json", help="Print the whole manifest.")] = False
) -> None:
    """Show what an artifact is and how it was made."""
    from deploykit.artifact import Artifact
    from deploykit.report.tables import header, rows

    manifest = Artifact.load(artifact).manifest
    if as_json:
        sys.stdout.write(manifest.model_dump_json(indent=2) + "\n")
        return
    out.print(f"{manifest.name}: {manifest.kind} for {manifest.task}, key {manifest.key[:12]}", markup=False)
    out.print(f"labels: {', '.join(manifest.labels)}; made {manifest.created}", markup=False)
    print_table(header(manifest.history), rows(manifest.history))


@app.command()
def verify(
    artifact: ArtifactDir,
    key: Annotated[Path | None, typer.Option(help="A public key in PEM that must have signed it.")] = None,
) -> None:
    """Check the files of an artifact.

    A package is also asked its golden set again.
    """
    import deploykit
    from deploykit.artifact import GOLDEN

    found = deploykit.verify(artifact, key)
    signed = f" and signed by the owner of {key}" if key else ""
    asked = ", and its golden answers hold" if GOLDEN in found.manifest.files else ""
    out.print(f"{artifact} is as it was made{signed}: {len(found.manifest.files)} files checked{asked}.", markup=False)


@app.command()
def sign(
    artifact: ArtifactDir,
    key: Annotated[Path, typer.Option(help="A private key in PEM, on the curve P-256, P-384 or P-521.")],
    password: Annotated[
        str | None, typer.Option(envvar="DEPLOYKIT_KEY_PASSWORD", help="Of the key; better given by the environment.")
    ] = None,
) -> None:
    """Sign an artifact with a private key.

    The signature has the format of the OpenSSF's model signing; only the artifact's files and the key are needed.
    """
    import deploykit

    found = deploykit.sign(artifact, key, password)
    out.print(f"{artifact} is signed: {len(found.manifest.files)} files.", markup=False)


@app.command()
def retune(
    package: ArtifactDir,
    output: Annotated[Path | None, typer.Option(help="Directory to write.", show_default="PACKAGE-retuned")] = None,
    objective: Annotated[str, typer.Option(help="latency, throughput or size.")] = "latency",
    minutes: Annotated[float, typer.Option(help="How long the search may take.")] = 5.0,
    lengths: Annotated[Path | None, typer.Option(help="A saved page of a running service's metrics.")] = None,
) -> None:
    """Choose the fastest graph again, on this machine.

    Nothing is trained; another package is written.
    """
    import deploykit
    from deploykit.stages.retuning import options

    wanted = options(objective=objective, minutes=minutes, lengths=lengths)
    found = deploykit.retune(package, output, wanted)
    out.print(f"package: {short(found.path)}, on {found.manifest.execution}", markup=False)


@app.command(name="explain-quantization")
def explain_quantization(
    package: ArtifactDir,
    quantizer: Annotated[str | None, typer.Option(help="Explain another one than the chosen.")] = None,
) -> None:
    """Show which MatMuls lose most when quantized.

    Ranks them by damage, and measures what keeping the worst of them in float would cost.
    """
    import deploykit
    from deploykit.stages.explanation import damage_rows, price_rows

    found = deploykit.explain_quantization(package, quantizer)
    out.print(f"{found.name}, on {found.texts} golden texts", markup=False)
    print_table(("MatMul", "damage", "signal to noise"), damage_rows(found))
    print_table(("in float", "bytes", "answers that change", "p50 of a median text"), price_rows(found))


@app.command(name="doctor")
def show_doctor() -> None:
    """Show what this machine offers and what is missing."""
    from deploykit.cli import doctor

    print_table(("what", "found", "advice"), doctor.rows())
