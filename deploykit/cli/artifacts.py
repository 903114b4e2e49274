"""The commands that show, check, sign and retune artifacts, and `doctor`, which shows this machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli.output import ArtifactDir, out, print_table, shorten_path

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
    key: Annotated[Path | None, typer.Option(help="PEM file with the public key of the signer.")] = None,
) -> None:
    """Check the files of an artifact.

    For a package, also check the answers to its golden set.
    """
    import deploykit
    from deploykit.artifact import GOLDEN

    files = deploykit.verify(artifact, key).manifest.files
    signed = f" and signed by the owner of {key}" if key else ""
    golden = ", and its golden answers hold" if GOLDEN in files else ""
    out.print(f"{artifact} is as it was made{signed}: {len(files)} files checked{golden}.", markup=False)


@app.command()
def sign(
    artifact: ArtifactDir,
    key: Annotated[Path, typer.Option(help="PEM file with a private key on P-256, P-384 or P-521.")],
    password: Annotated[
        str | None, typer.Option(envvar="DEPLOYKIT_KEY_PASSWORD", help="Of the key; better set in the environment.")
    ] = None,
) -> None:
    """Sign an artifact with a private key.

    The signature has the format of the OpenSSF's model signing. It needs no network.
    """
    import deploykit

    signed = deploykit.sign(artifact, key, password)
    out.print(f"{artifact} is signed: {len(signed.manifest.files)} files.", markup=False)


@app.command()
def retune(
    package: ArtifactDir,
    output: Annotated[Path | None, typer.Option(help="Directory to write.", show_default="PACKAGE-retuned")] = None,
    objective: Annotated[str, typer.Option(help="latency, throughput or size.")] = "latency",
    minutes: Annotated[float, typer.Option(help="How long the search may take.")] = 5.0,
    lengths: Annotated[Path | None, typer.Option(help="A saved page of a running service's metrics.")] = None,
) -> None:
    """Choose the fastest graph for this machine.

    Writes a new package, without training.
    """
    import deploykit
    from deploykit.stages.retuning import parse_options

    retuned = deploykit.retune(package, output, parse_options(objective=objective, minutes=minutes, lengths=lengths))
    out.print(f"package: {shorten_path(retuned.path)}, on {retuned.manifest.execution}", markup=False)


@app.command(name="explain-quantization")
def explain_quantization(
    package: ArtifactDir,
    quantizer: Annotated[str | None, typer.Option(help="Explain this one instead of the chosen one.")] = None,
) -> None:
    """Show which MatMuls lose most when quantized.

    Ranks them by damage, and measures the cost of keeping the worst in float.
    """
    import deploykit
    from deploykit.stages.explanation import damage_rows, price_rows

    explanation = deploykit.explain_quantization(package, quantizer)
    out.print(f"{explanation.name}, on {explanation.texts} golden texts", markup=False)
    print_table(("MatMul", "damage", "signal to noise"), damage_rows(explanation))
    print_table(("in float", "bytes", "answers that change", "p50 of a median text"), price_rows(explanation))


@app.command(name="doctor")
def show_doctor() -> None:
    """Show what this machine offers and what it lacks."""
    from deploykit.cli import doctor

    print_table(("what", "found", "advice"), doctor.rows())
