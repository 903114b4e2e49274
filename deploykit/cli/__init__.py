"""The command line: parse, call, print. No logic of its own.

Exit codes: 0 done, 1 a gate stopped it, 2 the input is wrong, 3 an internal error. A traceback appears only
with `--debug`.
"""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit import __version__, hardware, methods
from deploykit.cli import keys as key_commands
from deploykit.cli.keys import KeyFile
from deploykit.cli.output import err, out, print_table
from deploykit.errors import DeploykitError, GateError

if TYPE_CHECKING:
    from deploykit.pipeline import Outcome, Planned
    from deploykit.recipe import Recipe

app = typer.Typer(
    name="deploykit",
    help="From labelled text to a verified, running transformer service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(key_commands.app, name="keys")

INTERRUPTED = 130  # what typer returns for Ctrl-C, and a shell expects
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in YAML.")]
ArtifactDir = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A directory that a stage has written.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set train.epochs=1.")
]


def main() -> None:
    """Runs the command line and turns errors into messages and exit codes."""
    debug = "--debug" in sys.argv
    try:
        arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
        if app(arguments, standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped. Finished stages are kept: the same command goes on from them.", INTERRUPTED)
    except Exception as error:
        if debug:
            err.print_exception()
        if isinstance(error, ModuleNotFoundError):
            error = methods.missing_extra(error, "this command")
        if isinstance(error, DeploykitError):
            _fail(str(error), error.exit_code, "gate" if isinstance(error, GateError) else "error")
        if hasattr(error, "format_message"):  # a mistake on the command line itself
            _fail(f"{error.format_message()} See --help.", 2)
        _fail(f"internal: {type(error).__name__}: {error}. Run again with --debug for the traceback.", 3)


def _fail(message: str, code: int, kind: str = "error") -> None:
    err.print(f"{kind}: {message}", markup=False)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _options(
    _debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("deploykit").setLevel(logging.INFO)


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Make this and later stages again.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="The last stage to run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and what would run.")] = False,
) -> None:
    """Run a recipe; finished stages are skipped."""
    if dry_run:
        _show_plan(_recipe(recipe, overrides), first, until)
    else:
        _run(_recipe(recipe, overrides), first=first, until=until)


@app.command()
def train(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Fine-tune the base model, to a checkpoint."""
    _run(_recipe(recipe, overrides), only="train")


@app.command()
def prune(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Prune the checkpoint, to a smaller one."""
    _run(_recipe(recipe, overrides), only="prune")


@app.command()
def export(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Export the checkpoint to ONNX, and compare the two."""
    _run(_recipe(recipe, overrides), only="export")


@app.command()
def quantize(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Choose the fastest graph that passes the gates."""
    _run(_recipe(recipe, overrides), only="quantize")


@app.command()
def package(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Make a directory that serves by itself."""
    _run(_recipe(recipe, overrides), only="package")


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
def init(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="The file to write.")] = Path("recipe.yaml"),
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    task: Annotated[str | None, typer.Option(help="What the model does; see deploykit methods.")] = None,
    model: Annotated[str | None, typer.Option(help="A directory, package://… or a hub id.")] = None,
    data: Annotated[str | None, typer.Option(help="The training file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a first recipe, with comments.

    Asks for what no option says, and writes the JSON Schema for editors beside it.
    """
    from deploykit.recipe import template

    answers = {"name": name, "task": task, "model": model, "data": data}
    for question in template.QUESTIONS:
        if answers[question.key] is None:
            answers[question.key] = typer.prompt(question.text, default=question.default)
    template.write(path, {key: str(value) for key, value in answers.items()}, force=force)
    out.print(f"{path} is written. Next: deploykit run {path} --dry-run", markup=False)


@app.command(name="methods")
def list_methods() -> None:
    """List the methods that a recipe can name."""
    print_table(("kind", "methods"), [(kind, ", ".join(methods.available(kind))) for kind in methods.FOLDERS])


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from deploykit.recipe import json_schema

    sys.stdout.write(json.dumps(json_schema.schema(), indent=1) + "\n")


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
    out.print(f"package: {_short(found.path)}, on {found.manifest.execution}", markup=False)


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


@app.command(name="demo")
def run_demo(folder: Annotated[Path, typer.Argument(help="Where to work.")] = Path("demo")) -> None:
    """Run the whole path on movie reviews, and serve."""
    from deploykit.cli import demo as movie_reviews

    recipe = _recipe(movie_reviews.prepare(folder), None)
    err.print(f"On {hardware.cpu_name()}, with {hardware.cpu_limit()} cores, each stage will take:", markup=False)
    for stage, time in movie_reviews.estimates(recipe):
        err.print(f"  {stage}: {time}", markup=False)
    outcomes = _stages(recipe)
    keys = folder / "keys.json"
    for line in movie_reviews.ask(outcomes[-1].artifact.path, keys, folder / "test.jsonl"):
        out.print(line, markup=False)
    _summarize(outcomes)
    out.print(f"keys:    deploykit keys add NAME --keys {keys}, and --keys {keys} when you serve", markup=False)


def _recipe(path: Path, overrides: list[str] | None) -> "Recipe":
    from deploykit import recipe

    return recipe.load(path, overrides or ())


def _run(recipe: "Recipe", **stages: Any) -> None:
    _summarize(_stages(recipe, **stages))


def _stages(recipe: "Recipe", **stages: Any) -> "list[Outcome]":
    from deploykit import pipeline

    def notify(planned: "Planned", outcome: "Outcome | None") -> None:
        if outcome is not None:
            err.print(f"{planned.stage}: {outcome.status}, {outcome.seconds:.0f} s", markup=False)
        elif not planned.finished:
            err.print(f"{planned.stage} ({planned.method}) …", markup=False)

    return pipeline.run(recipe, notify=notify, **stages)


def _summarize(outcomes: "list[Outcome]") -> None:
    from deploykit.report.tables import header, rows

    last = outcomes[-1].artifact
    skipped = {found.artifact.manifest.stage: "skipped" for found in outcomes if found.status == "skipped"}
    print_table(header(last.manifest.history), rows(last.manifest.history, skipped))
    out.print(f"{last.manifest.kind}: {_short(last.path)}", markup=False)
    out.print(f"report:  {_short(last.path.parent / 'report.html')}", markup=False)
    if last.manifest.kind == "package":
        out.print(f"serve:   deploykit serve {_short(last.path.parent / 'package')}", markup=False)


def _show_plan(recipe: "Recipe", first: str | None, until: str | None) -> None:
    import yaml

    from deploykit import pipeline

    out.print(yaml.safe_dump(recipe.resolved(), sort_keys=False), markup=False)
    planned = pipeline.plan(recipe, first=first, until=until)
    print_table(
        ("stage", "method", "would", "artifact"), [(p.stage, p.method, p.would, _short(p.target)) for p in planned]
    )


def _short(path: Path) -> str:
    """Shows a path from here where it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
