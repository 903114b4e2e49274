"""Writes the pages that are made of the code: docs/reference/*.md and docs/benchmarks.md.

python docs/generate.py            writes them
python docs/generate.py --check    names those that are not up to date, and ends with 1
"""

import argparse
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import benchmark_tables
import typer
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import deploykit
from deploykit import cli, methods, tasks
from deploykit.artifact import Artifact, Manifest, ServeOptions
from deploykit.recipe import KIND_OF_STAGE, Recipe
from deploykit.serving import app, settings
from deploykit.serving.telemetry.metrics import Metrics

DOCS = Path(__file__).parent
GENERATED = "<!-- Made by `make docs` from the code. Do not edit. -->\n\n"
METHOD_TITLES = {"task": "Tasks", "trainer": "Trainers", "pruner": "Pruners", "quantizer": "Quantizers"}


def pages() -> dict[str, str]:
    """Returns every generated page by its path below docs/."""
    return {
        "reference/recipe.md": recipe_page(),
        "reference/command-line.md": command_line_page(),
        "reference/settings.md": settings_page(),
        "reference/http.md": http_page(),
        "reference/metrics.md": metrics_page(),
        "reference/python.md": python_page(),
        "benchmarks.md": benchmark_tables.page(DOCS.parent / "benchmarks" / "results"),
    }


# the recipe


def recipe_page() -> str:
    """The keys of a recipe, section by section, and the options of every method."""
    parts = [
        "# Recipe\n",
        "One YAML file describes one run. `deploykit schema` prints its JSON Schema; `deploykit init` writes a first"
        " recipe. Unknown keys are refused, and all mistakes are reported at once.\n",
        fields(Recipe),
    ]
    for name, field in Recipe.model_fields.items():
        if model := model_of(field.annotation):
            parts += [f"## `{name}`\n", prose(model), fields(model)]
    for stage, kind in {"task": "task", **KIND_OF_STAGE}.items():
        parts.append(f"## `{stage}`: {METHOD_TITLES[kind].lower()}\n")
        for name in methods.available(kind):
            options = methods.load(kind, name).Options
            parts += [f"### `method: {name}`\n", prose(options), fields(options)]
    parts += nested({"task": "heads", "prune": "distill", "serve": "records"})
    return "\n".join(parts)


def nested(places: dict[str, str]) -> Iterator[str]:
    """The options inside options: of heads, of distillation, and of records."""
    models = {
        "task": get_args(methods.load("task", "multi-task").Options.model_fields["heads"].annotation)[1],
        "prune": model_of(methods.load("pruner", "width").Options.model_fields["distill"].annotation),
        "serve": model_of(ServeOptions.model_fields["records"].annotation),
    }
    for stage, key in places.items():
        model = models[stage]
        assert model is not None
        yield from (f"## `{stage}: {{{key}: …}}`\n", prose(model), fields(model))


def fields(model: type[BaseModel]) -> str:
    """A table of a model's fields; nothing for a model without fields."""
    if not model.model_fields:
        return "No options.\n"
    rows = [
        (f"`{name}`", shown_type(field), default(field), " ".join((field.description or "").split()))
        for name, field in model.model_fields.items()
    ]
    return table(("key", "type", "default", "meaning"), rows)


def shown_type(field: FieldInfo) -> str:
    """A type as a reader of YAML sees it, with its bounds."""
    bounds = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(rule, name, None) is not None
    ]
    return ", ".join([type_name(field.annotation), *bounds])


def type_name(annotation: Any) -> str:
    """Names a type in YAML's words."""
    if model_of(annotation) is annotation:
        return "section"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_name(argument) for argument in arguments))
    if str(origin) == "typing.Literal":
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "section"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", type(None): "null"}
    return names[annotation]


def default(field: FieldInfo) -> str:
    """A default as YAML writes it."""
    if field.default_factory is not None:
        value = field.get_default(call_default_factory=True)
        return f"`{json.dumps(value, default=lambda part: part.model_dump(exclude_defaults=True))}`".replace('"', "")
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{json.dumps(value, default=str)}`"


def model_of(annotation: Any) -> type[BaseModel] | None:
    """Returns the pydantic model in an annotation."""
    candidates = [annotation, *get_args(annotation)]
    return next((found for found in candidates if isinstance(found, type) and issubclass(found, BaseModel)), None)


def prose(thing: Any) -> str:
    """The docstring of a class or function."""
    return (inspect.getdoc(thing) or "") + "\n"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


# the command line


def command_line_page() -> str:
    """What every command's `--help` prints, at 80 columns."""
    group = typer.main.get_command(cli.app)
    parts = [
        "# Command line\n",
        "Exit codes: 0 done, 1 a gate failed or was inconclusive, 2 the input is wrong, 3 an internal error, 130 stopped"
        " with Ctrl-C. `--debug`, anywhere, shows tracebacks. `deploykit --install-completion` completes commands and"
        " options in your shell.\n",
    ]
    parts += [f"## `{name}`\n\n```text\n{text}```\n" for name, text in helps(group, "deploykit")]
    return "\n".join(parts)


def helps(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    """Yields the name and help text of a command and of those below it."""
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, max_content_width=80, terminal_width=80
    )
    yield context.command_path, command.get_help(context).rstrip() + "\n"
    for below, nested_command in getattr(command, "commands", {}).items():
        yield from helps(nested_command, below, context)


# a service


def settings_page() -> str:
    """What configures a service: the recipe's section, and the environment."""
    rows = [
        (f"`{name}`", str(field.title), " ".join((field.description or "").split()))
        for name, field in settings.VARIABLE_FIELDS.items()
    ]
    return (
        "# Settings of a service\n\nHow a model is served belongs to the recipe and travels in the package:"
        " [`serve:`](recipe.md#serve). Where its keys are, and who may read its metrics, belongs to the machine and comes"
        " from environment variables. A blank variable counts as not set, except for `DEPLOYKIT_SIGNED_BY`.\n\n"
        + table(("variable", "value", "meaning"), rows)
        + "\nTraces are sent if OpenTelemetry's standard variables ask for them, such as `OTEL_EXPORTER_OTLP_ENDPOINT`.\n"
    )


def http_page() -> str:
    """Every route of a service for text classification of pairs, from its own OpenAPI document."""
    document = json.loads(described())
    rows = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answers = sorted(code for code in operation["responses"] if code != "200")
            needs = "a key" if operation["security"] else "nothing"
            rows.append((f"`{method.upper()} {path}`", needs, ", ".join(answers)))
    schemas = document["components"]["schemas"]
    parts = [
        "# HTTP API\n",
        "The routes of a service for text classification of pairs whose package is called `NAME`. Where a model reads"
        " single texts, there is no `text_pairs` and no `/v1/rank`. A running service gives the whole OpenAPI 3.1"
        " document at `/docs.json`. Every refusal is an `application/problem+json` (RFC 9457).\n",
        table(("route", "needs", "refusals"), rows),
        "## Bodies\n",
    ]
    for name, schema in sorted(schemas.items()):
        properties = schema.get("properties", {})
        if properties:
            shown = [(f"`{key}`", json_type(value), value.get("description", "")) for key, value in properties.items()]
            parts += [f"### {name}\n", schema.get("description", "") + "\n", table(("field", "type", "meaning"), shown)]
    return "\n".join(parts)


def json_type(schema: dict[str, Any]) -> str:
    """Names the type of a JSON value."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(json_type(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of {json_type(schema.get('items', {}))}"
    return str(schema.get("type", schema.get("const", "any")))


def described() -> bytes:
    """The OpenAPI document of a service whose model need not exist."""
    names = {"name": "NAME", "task": "text-classification", "labels": ("0", "1"), "key": "0" * 64}
    manifest = Manifest.model_construct(
        **names, pair=True, task_options={}, max_tokens=512, files={}, serve=ServeOptions()
    )
    artifact = Artifact(DOCS, manifest)
    service = settings.Settings.model_construct(**ServeOptions().model_dump(), DEPLOYKIT_KEYS=Path("keys.json"))
    return app.Application(service, artifact, tasks.load("text-classification")).openapi_document


# metrics


def metrics_page() -> str:
    """The metrics of a service: name, type, labels and meaning."""
    rows = []
    for metric in vars(Metrics(["/"], [])).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            rows.append((f"`{name}`", family.type, labels, family.documentation))
    text = (
        "# Metrics\n\nWhat `GET /metrics` answers. A histogram is a series of `_bucket`, with `_sum` and `_count`."
        " All series but those of rare statuses are there from the first scrape of a service that is ready, and say"
        " the same with several workers.\n\n"
    )
    return text + table(("name", "type", "labels", "meaning"), rows)


# Python


def python_page() -> str:
    """The public names of the package: signatures and docstrings."""
    parts = [
        "# Python API\n",
        "Everything else that can be imported is internal and may change without notice ([stability](../stability.md)).\n",
    ]
    for name in deploykit.__all__:
        thing = getattr(deploykit, name)
        signature = "" if isinstance(thing, type) and issubclass(thing, BaseModel) else str(inspect.signature(thing))
        parts.append(f"## `{name}`\n\n```python\n{name}{signature}\n```\n\n```text\n{inspect.getdoc(thing)}\n```\n")
        if isinstance(thing, type):
            parts += list(members(thing))
    return "\n".join(parts)


def members(cls: type) -> Iterator[str]:
    """Yields the public methods of a class."""
    for name, member in vars(cls).items():
        function = getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(function):
            yield f"### `{cls.__name__}.{name}`\n\n```text\n{inspect.getdoc(function)}\n```\n"


def main() -> int:
    """Writes the pages, or compares them with what is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a page is not up to date")
    check = parser.parse_args().check
    stale = []
    for name, text in pages().items():
        file, text = DOCS / name, GENERATED + text.rstrip() + "\n"
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
    for name in stale:
        sys.stdout.write(f"{'not up to date' if check else 'written'}: docs/{name}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
