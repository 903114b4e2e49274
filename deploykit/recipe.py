"""The recipe: a frozen, validated statement of one whole run. It holds no behaviour.

One YAML file, read by the safe loader; `key=value` overrides come on top. All mistakes are reported at
once, unknown keys with the nearest known one. Each method's options live in the method's own file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from deploykit import methods
from deploykit.artifact import ServeOptions
from deploykit.errors import DeploykitError, RecipeError
from deploykit.methods import Options, did_you_mean

KIND_OF_STAGE = {"train": "trainer", "prune": "pruner", "quantize": "quantizer"}
DEFAULTS = {"train": "full", "quantize": "dynamic"}  # methods of sections that a recipe leaves out
STAGES = ("train", "prune", "export", "quantize", "package")


class DataSection(Options):
    """Where the labelled data is, and the names of its columns.

    `train` is a file (csv, tsv, jsonl, parquet) or a data set's id on the hub. `validation` and `test` are
    files, or names of splits of that data set; a split that is left out is cut from `train`: the share
    `validation_share` or `test_share`, stratified and seeded. `text_pair` names the second text of a pair.
    Token classification reads `tokens` and `tags`, or `text` and `spans` when `spans` is named.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    test_share: float = Field(default=0.1, gt=0, lt=0.5)
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    tokens: str = "tokens"
    tags: str = "tags"
    spans: str | None = None
    max_tokens: int | None = Field(default=None, ge=8)
    allow_leakage: bool = False


class ExportSection(Options):
    """How the graph is exported; `tolerance` is the largest logit difference from torch in float32."""

    opset: int = Field(default=18, ge=14, le=20)
    tolerance: float = Field(default=1e-3, gt=0)


class GateSection(Options):
    """What the result must keep, measured on the validation split; null sets no bound.

    Against the model before the stage and, at packaging, against the trained model: `max_drop` bounds the loss of the
    task's first metric, `max_label_drop` the loss of recall of any label, `max_length_drop` that of the first metric
    in any quarter of the texts by length, `max_flips` the share of rows in which a prediction changes, and
    `max_calibration_shift` the growth of the calibration error. Of what is served, `max_p95_ms` bounds the 95 %
    quantile of the latency of one text, and `max_bytes` the size of the graph.

    A gate holds when the 95 % interval lies within its limit. Where it lies across, the rows cannot tell:
    `cannot_tell: stop` stops the run there, `accept` lets the measured value decide.
    """

    max_drop: float = Field(default=0.01, ge=0, le=1)
    max_flips: float | None = Field(default=None, ge=0, le=1)
    max_label_drop: float | None = Field(default=None, ge=0, le=1)
    max_length_drop: float | None = Field(default=None, ge=0, le=1)
    max_calibration_shift: float | None = Field(default=None, ge=0, le=1)
    max_p95_ms: float | None = Field(default=None, gt=0)
    max_bytes: int | None = Field(default=None, ge=1)
    cannot_tell: Literal["stop", "accept"] = "stop"


class PackageSection(Options):
    """What goes into the package besides the chosen graph.

    `store` also adds the package to BentoML's model store, `golden` is the size of the golden set, and
    `float_graph` carries the float graph too, for machines where the choice does not hold.
    """

    store: bool = True
    float_graph: bool = True
    golden: int = Field(default=64, ge=1, le=1024)


class Recipe(Options):
    """One whole run. A stage that is set to null is skipped."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")
    task: str
    model: str
    revision: str | None = None
    data: DataSection
    seed: int = Field(default=0, ge=0, lt=2**32)
    output: str | None = None
    train: dict[str, Any] | None = Field(default_factory=lambda: {"method": DEFAULTS["train"]})
    prune: dict[str, Any] | None = None
    export: ExportSection | None = ExportSection()
    quantize: dict[str, Any] | None = Field(default_factory=lambda: {"method": DEFAULTS["quantize"]})
    gates: GateSection = GateSection()
    package: PackageSection | None = PackageSection()
    serve: ServeOptions = ServeOptions()

    @field_validator("train", "prune", "quantize")
    @classmethod
    def _names_a_method(cls, section: dict[str, Any] | None) -> dict[str, Any] | None:
        if section is not None and not isinstance(section.get("method"), str):
            raise ValueError("needs `method:`, the name of one of its methods")
        return section

    def method(self, stage: str) -> str:
        """Returns the name of a stage's method; fixed stages have one of their own name, `train: null` is `none`."""
        section = getattr(self, stage)
        if stage == "train" and section is None:
            return "none"
        return str(section["method"]) if isinstance(section, dict) else stage

    def resolved(self) -> dict[str, Any]:
        """Returns the whole recipe with every default filled in, as plain values."""
        content = self.model_dump(mode="json")
        for stage in KIND_OF_STAGE:
            if content[stage] is not None:
                content[stage] = {"method": self.method(stage), **self.options(stage).model_dump(mode="json")}
        return content

    def options(self, stage: str) -> BaseModel:
        """Returns a stage's validated options; defaults are filled in."""
        section = getattr(self, stage)
        if not isinstance(section, dict):
            return section if section is not None else Options()
        chosen: type[BaseModel] = methods.load(KIND_OF_STAGE[stage], section["method"]).Options
        return chosen.model_validate({key: value for key, value in section.items() if key != "method"})


def load(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: a YAML file. Paths inside it are relative to its directory.
        overrides: `key=value` each, with dots for nested keys: `train.epochs=1`. Values are YAML.

    Raises:
        RecipeError: lists every mistake.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}. Write one with: deploykit init") from None
    except OSError as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe {path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"the recipe {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"the recipe {path} must hold keys and values, found {type(content).__name__}.")
    for override in overrides:
        _override(content, override)
    return parse(content, folder=path.parent, source=str(path))


def parse(content: Mapping[str, Any], folder: Path = Path(), source: str = "the recipe") -> Recipe:
    """Validates a recipe that is already in memory.

    Args:
        content: what the YAML file would hold.
        folder: what its relative paths start from.
        source: named in the message.

    Raises:
        RecipeError: lists every mistake.
    """
    mistakes: list[str] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        mistakes += _explain(error, Recipe, ())
    mistakes += _method_mistakes(content)
    if mistakes or recipe is None:
        listing = "\n".join(f"  - {mistake}" for mistake in mistakes)
        raise RecipeError(f"{source} has {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}:\n{listing}")
    return _resolve_paths(recipe, folder)


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a recipe, for editors."""
    return Recipe.model_json_schema()


def _method_mistakes(content: Mapping[str, Any]) -> Iterator[str]:
    names = [("task", "task", content.get("task"))]
    sections = {stage: section for stage in KIND_OF_STAGE if isinstance(section := content.get(stage), dict)}
    names += [(stage, KIND_OF_STAGE[stage], section.get("method")) for stage, section in sections.items()]
    for stage, kind, name in names:
        if not isinstance(name, str):
            continue  # the model above has said so
        try:
            method = methods.load(kind, name)
            if stage != "task":
                options = {key: value for key, value in sections[stage].items() if key != "method"}
                method.Options.model_validate(options)
        except ValidationError as error:
            yield from _explain(error, method.Options, (stage,))
        except DeploykitError as error:
            yield f"{stage}: {error}"


def _explain(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[str]:
    for mistake in error.errors():
        place = (*prefix, *map(str, mistake["loc"]))
        if mistake["type"] == "extra_forbidden":
            known = _fields(model, mistake["loc"][:-1])
            extra = ["method"] if prefix else []
            hint = did_you_mean(place[-1], known)
            yield f"{'.'.join(place)}: unknown key{hint}. Known: {', '.join([*extra, *known])}."
        elif mistake["type"] == "missing":
            yield f"{'.'.join(place)}: is missing"
        else:
            message = mistake["msg"].removeprefix("Value error, ")
            yield f"{'.'.join(place)}: {message}, got {mistake['input']!r}"


def _fields(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    for name in place:
        annotation = model.model_fields[str(name)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(found for found in candidates if isinstance(found, type) and issubclass(found, BaseModel))
    return list(model.model_fields)


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
        raise RecipeError(f"--set takes key=value with dots for nested keys, as in train.epochs=1; got {override!r}.")
    *parents, last = key.split(".")
    for name in parents:
        if not isinstance(content.get(name), dict):
            content[name] = {"method": DEFAULTS[name]} if name in DEFAULTS else {}
        content = content[name]
    try:
        content[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value of --set {override!r} is not YAML: {error}") from error


def _resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Makes paths absolute where they name something beside the recipe, so that any stage can open them."""
    data = recipe.data.model_dump()
    for name in ("train", "validation", "test"):
        if data[name] and (is_file(data[name]) or (folder / data[name]).exists()):
            data[name] = str((folder / data[name]).resolve())
    beside = (folder / recipe.model).resolve()
    return recipe.model_copy(
        update={
            "data": DataSection(**data),
            "model": str(beside) if "://" not in recipe.model and beside.exists() else recipe.model,
            "output": str((folder / (recipe.output or f"runs/{recipe.name}")).resolve()),
        }
    )


def is_file(source: str) -> bool:
    """Says whether a data source is meant as a file rather than as a data set of the hub."""
    return Path(source).suffix in (".csv", ".tsv", ".jsonl", ".json", ".parquet")
