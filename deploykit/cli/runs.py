"""The commands that write and run recipes."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit import hardware, methods
from deploykit.cli.output import err, out, print_table, shorten_path

if TYPE_CHECKING:
    from deploykit.pipeline import PlannedStage, StageOutcome
    from deploykit.recipe import Recipe

app = typer.Typer()
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in YAML.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set train.epochs=1.")
]


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Run this and later stages again.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="The last stage to run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and what would run.")] = False,
) -> None:
    """Run a recipe; finished stages are skipped."""
    if dry_run:
        _show_plan(_load_recipe(recipe, overrides), first, until)
    else:
        _run(_load_recipe(recipe, overrides), first=first, until=until)


def _add_stage(stage: str, summary: str) -> None:
    """Adds a command that runs a single stage."""

    def command(recipe: RecipeFile, overrides: Overrides = None) -> None:
        _run(_load_recipe(recipe, overrides), only=stage)

    app.command(name=stage, help=summary)(command)


_add_stage("train", "Fine-tune the base model to a checkpoint.")
_add_stage("prune", "Prune the checkpoint to a smaller one.")
_add_stage("export", "Export the checkpoint to ONNX, and compare the two.")
_add_stage("quantize", "Choose the fastest graph that passes the gates.")
_add_stage("package", "Write a directory that can be served by itself.")


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

    Asks for what the options leave out, and writes the JSON Schema for editors beside it.
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
    rows = [
        (kind, name, methods.summary(kind, name)) for kind in methods.METHOD_FOLDERS for name in methods.available(kind)
    ]
    print_table(("kind", "method", "what it does"), rows)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from deploykit.recipe import json_schema

    sys.stdout.write(json.dumps(json_schema.schema(), indent=1) + "\n")


@app.command(name="demo")
def run_demo(folder: Annotated[Path, typer.Argument(help="Directory of the run.")] = Path("demo")) -> None:
    """Run the whole path on movie reviews, and serve."""
    from deploykit.cli import demo as movie_reviews

    recipe = _load_recipe(movie_reviews.prepare(folder), None)
    err.print(f"On {hardware.cpu_name()}, with {hardware.cpu_limit()} cores, each stage will take:", markup=False)
    for stage, time in movie_reviews.estimate_times(recipe):
        err.print(f"  {stage}: {time}", markup=False)
    outcomes = _run_stages(recipe)
    keys = folder / "keys.json"
    for line in movie_reviews.query_service(outcomes[-1].artifact.path, keys, folder / "test.jsonl"):
        out.print(line, markup=False)
    _print_result(outcomes)
    out.print(f"keys:    deploykit keys add NAME --keys {keys}, and --keys {keys} when you serve", markup=False)


def _load_recipe(path: Path, overrides: list[str] | None) -> "Recipe":
    from deploykit import recipe

    return recipe.load(path, overrides or ())


def _run(recipe: "Recipe", **selection: Any) -> None:
    """Runs stages and prints the result; `selection` is `first`, `until` or `only` of `pipeline.run`."""
    _print_result(_run_stages(recipe, **selection))


def _run_stages(recipe: "Recipe", **selection: Any) -> "list[StageOutcome]":
    """Runs a recipe, and prints each stage when it begins and when it ends."""
    from deploykit import pipeline

    def print_progress(planned: "PlannedStage", outcome: "StageOutcome | None") -> None:
        if outcome is not None:
            err.print(f"{planned.stage}: {outcome.status}, {outcome.seconds:.0f} s", markup=False)
        elif not planned.finished:
            err.print(f"{planned.stage} ({planned.method}) …", markup=False)

    return pipeline.run(recipe, notify=print_progress, **selection)


def _print_result(outcomes: "list[StageOutcome]") -> None:
    """Prints the table of all stages, and where the last artifact and the report are."""
    from deploykit.report.tables import header, rows

    last = outcomes[-1].artifact
    skipped = {outcome.artifact.manifest.stage: "skipped" for outcome in outcomes if outcome.status == "skipped"}
    print_table(header(last.manifest.history), rows(last.manifest.history, skipped))
    out.print(f"{last.manifest.kind}: {shorten_path(last.path)}", markup=False)
    out.print(f"report:  {shorten_path(last.path.parent / 'report.html')}", markup=False)
    if last.manifest.kind == "package":
        out.print(f"serve:   deploykit serve {shorten_path(last.path.parent / 'package')}", markup=False)


def _show_plan(recipe: "Recipe", first: str | None, until: str | None) -> None:
    """Prints the recipe with all defaults, and for each stage whether it would run."""
    import yaml

    from deploykit import pipeline

    out.print(yaml.safe_dump(recipe.resolved(), sort_keys=False), markup=False)
    planned = pipeline.plan(recipe, first=first, until=until)
    rows = [(stage.stage, stage.method, stage.would, shorten_path(stage.target)) for stage in planned]
    print_table(("stage", "method", "would", "artifact"), rows)
