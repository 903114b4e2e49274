"""The recipe: a frozen, validated statement of one whole run. It holds no behaviour.

One YAML file, read by the safe loader; `key=value` overrides come on top. All mistakes are reported at
once, unknown keys with the nearest known one. Each method's options live in the method's own file.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from deploykit import methods
from deploykit.artifact import ServeOptions
from deploykit.errors import DeploykitError, RecipeError
from deploykit.methods import Options
from deploykit.recipe.overrides import DEFAULTS, apply
from deploykit.recipe.validation import explain

logger = logging.getLogger(__name__)

KIND_OF_STAGE = {"train": "trainer", "prune": "pruner", "quantize": "quantizer"}
NO_METHOD = "needs `method:`, the name of one of its methods"
DATA_FILE = re.compile(r"\.(csv|tsv|jsonl|json|parquet)(?:\.(?:gz|bz2|xz))?$", re.IGNORECASE)
STAGES = ("train", "prune", "export", "quantize", "package")


class DataSection(Options):
    """Where the labelled data is, and the names of its columns."""

    train: str
    """A file (csv, tsv, jsonl, parquet; also compressed), or the id of a data set on the hub."""
    validation: str | None = None
    """A file, or a split of the data set. Left out: cut from `train`, stratified and seeded."""
    test: str | None = None
    """A file, or a split of the data set. Left out: cut from `train`, stratified and seeded."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the training rows that becomes the validation split where none is named."""
    test_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the training rows that becomes the test split where none is named."""
    text: str = "text"
    """Column of the text."""
    text_pair: str | None = None
    """Column of the second text; naming it makes this a task on pairs of texts."""
    label: str = "label"
    """Column of the label (text classification)."""
    tokens: str = "tokens"
    """Column of the list of words (token classification)."""
    tags: str = "tags"
    """Column of the list of tags, one for each word (token classification)."""
    spans: str | None = None
    """Column of the spans, a list of `start`, `end`, `label` over `text`. Named: read instead of `tokens` and
    `tags`."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Longest input in tokens; null: the most that the model reads."""
    allow_leakage: bool = False
    """Goes on where a text stands in two splits; otherwise that stops the run."""


class ExportSection(Options):
    """How the graph is exported."""

    opset: int = Field(default=18, ge=14, le=20)
    """Version of the ONNX operator set."""
    tolerance: float = Field(default=1e-3, gt=0)
    """Largest difference of a logit from torch in float32."""


class GateSection(Options):
    """What the result must keep, measured on the validation split; null sets no limit.

    Each stage is compared with the model before it, and packaging with the trained model. A gate has passed when the
    95 % interval lies within the limit, has failed when it lies beyond, and is inconclusive in between.
    """

    max_drop: float = Field(default=0.01, ge=0, le=1)
    """Largest loss of the task's first metric."""
    max_flips: float | None = Field(default=None, ge=0, le=1)
    """Largest share of rows in which a prediction changes."""
    max_label_drop: float | None = Field(default=None, ge=0, le=1)
    """Largest loss of recall of any label."""
    max_length_drop: float | None = Field(default=None, ge=0, le=1)
    """Largest loss of the first metric in any quarter of the texts by length."""
    max_calibration_shift: float | None = Field(default=None, ge=0, le=1)
    """Largest growth of the expected calibration error."""
    max_p95_ms: float | None = Field(default=None, gt=0)
    """Largest 95th percentile of the latency of one text, in milliseconds."""
    max_bytes: int | None = Field(default=None, ge=1)
    """Largest size of the graph, in bytes."""
    inconclusive: Literal["stop", "accept"] = "stop"
    """What an inconclusive gate does: `stop` ends the run, `accept` lets the measured value decide."""

    @model_validator(mode="before")
    @classmethod
    def _reads_the_earlier_key(cls, content: Any) -> Any:
        if isinstance(content, dict) and "cannot_tell" in content and "inconclusive" not in content:
            logger.warning("gates.cannot_tell is now called gates.inconclusive; rename the key in your recipe")
            content = {("inconclusive" if key == "cannot_tell" else key): value for key, value in content.items()}
        return content


class PackageSection(Options):
    """What goes into the package besides the chosen graph."""

    store: bool = True
    """Adds the package to BentoML's model store as well."""
    float_graph: bool = True
    """Carries the float graph too, for machines on which the chosen graph cannot run."""
    golden: int = Field(default=64, ge=1, le=1024)
    """Number of validation texts in the golden set."""


class Steps(Options):
    """The options of a stage of several steps, each with its `method`."""

    steps: tuple[dict[str, Any], ...]


class Recipe(Options):
    """One whole run. A stage that is set to null is skipped."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")
    """Name of the run: lower-case letters, digits, dots, dashes and underscores."""
    task: str
    """One of `deploykit methods`, for example `text-classification`."""
    model: str
    """The base model: a directory, `package://MODULE/PATH` inside an installed package, or an id of the model hub."""
    revision: str | None = None
    """Revision of a model from the hub; its commit is recorded."""
    data: DataSection
    """The labelled data."""
    labels: dict[str, str] = Field(default_factory=dict)
    """With `train: null`: what labels of the model are called in the data, where the two differ."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of splits, training and every search."""
    output: str | None = None
    """Directory for the artifacts; default: `runs/NAME` beside the recipe."""
    train: dict[str, Any] | None = Field(default_factory=lambda: {"method": DEFAULTS["train"]})
    """Method of fine-tuning and its options; null takes the model as it is."""
    prune: dict[str, Any] | list[dict[str, Any]] | None = None
    """Method of pruning and its options, a list of them in order, or null."""
    export: ExportSection | None = ExportSection()
    """Export to ONNX."""
    quantize: dict[str, Any] | None = Field(default_factory=lambda: {"method": DEFAULTS["quantize"]})
    """Quantizer and its options; `auto` searches."""
    gates: GateSection = GateSection()
    """What the result must keep."""
    package: PackageSection | None = PackageSection()
    """What the package holds."""
    serve: ServeOptions = ServeOptions()
    """How the package is served."""

    @field_validator("labels", mode="before")
    @classmethod
    def _are_words(cls, labels: Any) -> Any:
        """Takes numbers for words, as the data does."""
        if not isinstance(labels, dict):
            return labels
        return {_word(label): _word(name) for label, name in labels.items()}

    @field_validator("prune", mode="before")
    @classmethod
    def _is_one_or_several(cls, section: Any) -> Any:
        several = isinstance(section, list) and section and all(isinstance(step, dict) for step in section)
        if section is not None and not isinstance(section, dict) and not several:
            raise ValueError("must be a mapping with `method:`, a list of such mappings, or null")
        return section

    @field_validator("train", "prune", "quantize")
    @classmethod
    def _names_a_method(cls, section: Any) -> Any:
        if isinstance(section, dict) and not isinstance(section.get("method"), str):
            raise ValueError(NO_METHOD)
        return section

    def method(self, stage: str) -> str:
        """Returns the name of a stage's method; fixed stages have one of their own name, `train: null` is `none`."""
        section = getattr(self, stage)
        if stage == "train" and section is None:
            return "none"
        return "+".join(step["method"] for step in _listed(section)) if isinstance(section, (dict, list)) else stage

    def steps(self, stage: str) -> list[tuple[str, Options]]:
        """Returns the methods of a stage in order, each with its validated options."""
        return [
            (step["method"], methods.load(KIND_OF_STAGE[stage], step["method"]).Options.model_validate(_options(step)))
            for step in _listed(getattr(self, stage))
        ]

    def files(self, stage: str) -> list[Path]:
        """Returns the files that the options of a stage's methods name."""
        steps = self.steps(stage) if isinstance(getattr(self, stage), (dict, list)) else ()
        return [path for _, options in steps for _, path in _paths(options)]

    def resolved(self) -> dict[str, Any]:
        """Returns the whole recipe with every default filled in, as plain values."""
        content = self.model_dump(mode="json")
        for stage in KIND_OF_STAGE:
            if content[stage] is not None:
                steps = _dumped(self.steps(stage))
                content[stage] = steps if isinstance(content[stage], list) else steps[0]
        return content

    def options(self, stage: str) -> BaseModel:
        """Returns a stage's validated options; defaults are filled in."""
        section = getattr(self, stage)
        if isinstance(section, list):
            return Steps(steps=tuple(_dumped(self.steps(stage))))
        if isinstance(section, dict):
            return self.steps(stage)[0][1]
        return section if section is not None else Options()


def _word(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _listed(section: Any) -> list[dict[str, Any]]:
    return section if isinstance(section, list) else [section]


def _options(step: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in step.items() if key != "method"}


def _dumped(steps: Sequence[tuple[str, Options]]) -> list[dict[str, Any]]:
    return [{"method": name, **options.model_dump(mode="json")} for name, options in steps]


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
        apply(content, override)
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
        mistakes += explain(error, Recipe, ())
    mistakes += _method_mistakes(content)
    if recipe is not None and recipe.export is None and (recipe.quantize or recipe.package):
        mistakes.append("export: null writes no graph for quantize and package: set both to null, too")
    if recipe is not None and recipe.labels and recipe.train is not None:
        mistakes.append("labels: renames the labels of a model that is taken as it is, got no train: null")
    if mistakes or recipe is None:
        listing = "\n".join(f"  - {mistake}" for mistake in mistakes)
        raise RecipeError(f"{source} has {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}:\n{listing}")
    return _resolve_paths(recipe, folder)


def _method_mistakes(content: Mapping[str, Any]) -> Iterator[str]:
    for place, kind, step in [("task", "task", {"method": content.get("task")}), *_steps(content)]:
        name = step.get("method")
        if not isinstance(name, str):
            if "[" in place:  # otherwise the model above has said so
                yield f"{place}: {NO_METHOD}, got {step!r}"
            continue
        try:
            method = methods.load(kind, name)
            if kind != "task":
                method.Options.model_validate(_options(step))
        except ValidationError as error:
            yield from explain(error, method.Options, (place,))
        except DeploykitError as error:
            yield f"{place}: {error}"


def _steps(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields place, kind and content of every section that names a method, and of every step of one that is a list."""
    for stage, kind in KIND_OF_STAGE.items():
        section = content.get(stage)
        several = isinstance(section, list)
        for index, step in enumerate(_listed(section)):
            if isinstance(step, dict):
                yield f"{stage}[{index}]" if several else stage, kind, step


def _resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Makes paths absolute where they name something beside the recipe, so that any stage can open them."""
    data = recipe.data.model_dump()
    for name in ("train", "validation", "test"):
        if data[name] and (is_file(data[name]) or (folder / expanded(data[name])).exists()):
            data[name] = str((folder / expanded(data[name])).resolve())
    beside = (folder / expanded(recipe.model)).resolve()
    sections = {stage: _with_paths(recipe, stage, folder) for stage in KIND_OF_STAGE}
    return recipe.model_copy(
        update={
            **sections,
            "data": DataSection(**data),
            "model": str(beside) if "://" not in recipe.model and beside.exists() else recipe.model,
            "output": str((folder / expanded(recipe.output or f"runs/{recipe.name}")).resolve()),
        }
    )


def _with_paths(recipe: Recipe, stage: str, folder: Path) -> Any:
    """Returns the section of a stage with absolute paths in its methods' options."""
    section = getattr(recipe, stage)
    if section is None:
        return None
    found = [
        {**step, **{name: str((folder / expanded(path)).resolve()) for name, path in _paths(options)}}
        for step, (_, options) in zip(_listed(section), recipe.steps(stage), strict=True)
    ]
    return found if isinstance(section, list) else found[0]


def _paths(options: BaseModel) -> Iterator[tuple[str, Path]]:
    return ((name, value) for name, value in options if isinstance(value, Path))


def file_format(source: str) -> str | None:
    """Returns `csv`, `tsv`, `jsonl`, `json` or `parquet` by a file's suffix, compressed or not; otherwise None."""
    match = DATA_FILE.search(source)
    return match and match[1].lower()


def is_file(source: str) -> bool:
    """Says whether a data source is meant as a file rather than as a data set of the hub."""
    return file_format(source) is not None


def expanded(path: str | Path) -> Path:
    """Returns a path with its leading `~` replaced by the home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)
