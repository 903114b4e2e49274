"""The whole recipe as one frozen model, with the options of its methods."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, Field, field_validator

from deploykit import methods
from deploykit.artifact import ServeOptions
from deploykit.methods import Options
from deploykit.recipe.overrides import DEFAULT_METHODS
from deploykit.recipe.sections import DataSection, ExportSection, GateSection, PackageSection

KIND_OF_STAGE = {"train": "trainer", "prune": "pruner", "quantize": "quantizer"}  # of its methods; see `methods`
METHOD_MISSING = "needs `method:`, the name of one of its methods"
logger = logging.getLogger(__name__)
STAGES = ("train", "prune", "export", "quantize", "package")


class Steps(Options):
    """The options of a stage with several steps, each with its `method`."""

    steps: tuple[dict[str, Any], ...]


class Recipe(Options):
    """One whole run. A stage that is set to null is skipped."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")
    """Name of the run: lower-case letters, digits, dots, dashes and underscores."""
    task: str | dict[str, Any]
    """A task that `deploykit methods` lists, for example `text-classification`; with options, a mapping with `method`
    and the options."""
    model: str
    """The base model: a directory, `package://MODULE/PATH` inside an installed package, or an id of the model hub."""
    revision: str | None = None
    """Revision of a model from the hub; its commit is recorded."""
    data: DataSection
    """The labelled data."""
    labels: dict[str, str] = Field(default_factory=dict)
    """With `train: null`: maps labels of the model to those of the data, if they differ."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of splits, training and every search."""
    output: str | None = None
    """Directory for the artifacts; default: `runs/NAME` beside the recipe."""
    train: dict[str, Any] | None = Field(default_factory=lambda: {"method": DEFAULT_METHODS["train"]})
    """Method of fine-tuning and its options; null uses the model without training."""
    prune: dict[str, Any] | list[dict[str, Any]] | None = None
    """Method of pruning and its options, a list of them in order, or null."""
    export: ExportSection | None = ExportSection()
    """Export to ONNX."""
    quantize: dict[str, Any] | None = Field(default_factory=lambda: {"method": DEFAULT_METHODS["quantize"]})
    """Quantizer and its options; `auto` searches."""
    gates: GateSection = GateSection()
    """What the result must keep."""
    package: PackageSection | None = PackageSection()
    """Contents of the package."""
    serve: ServeOptions = ServeOptions()
    """How the package is served."""

    @field_validator("labels", mode="before")
    @classmethod
    def _convert_labels(cls, labels: Any) -> Any:
        """Converts whole numbers to strings, since labels of the data are strings."""
        if not isinstance(labels, dict):
            return labels
        return {_number_to_string(label): _number_to_string(name) for label, name in labels.items()}

    @field_validator("task", mode="before")
    @classmethod
    def _check_task(cls, section: Any) -> Any:
        if not isinstance(section, (str, dict)):
            raise ValueError("must be the name of a task, or a mapping with `method:` and its options")
        return section

    @field_validator("prune", mode="before")
    @classmethod
    def _check_prune(cls, section: Any) -> Any:
        several = isinstance(section, list) and section and all(isinstance(step, dict) for step in section)
        if section is not None and not isinstance(section, dict) and not several:
            raise ValueError("must be a mapping with `method:`, a list of such mappings, or null")
        return section

    @field_validator("task", "train", "prune", "quantize")
    @classmethod
    def _check_method(cls, section: Any) -> Any:
        if isinstance(section, dict) and not isinstance(section.get("method"), str):
            raise ValueError(METHOD_MISSING)
        return section

    @property
    def task_name(self) -> str:
        """The name of the task."""
        return self.task["method"] if isinstance(self.task, dict) else self.task

    def task_options(self) -> BaseModel:
        """Returns the validated options of the task; defaults are filled in."""
        options = without_method(self.task) if isinstance(self.task, dict) else {}
        return cast(BaseModel, methods.load("task", self.task_name).Options.model_validate(options))

    def method(self, stage: str) -> str:
        """Returns the name of the method of a stage.

        It is `none` for `train: null`, and the name of the stage if the stage has only one method. Several steps are
        joined by `+`.
        """
        section = getattr(self, stage)
        if stage == "train" and section is None:
            return "none"
        return "+".join(step["method"] for step in as_list(section)) if isinstance(section, (dict, list)) else stage

    def steps(self, stage: str) -> list[tuple[str, Options]]:
        """Returns the methods of a stage in order, each with its validated options."""
        kind, steps = KIND_OF_STAGE[stage], as_list(getattr(self, stage))
        names_and_options = [(step["method"], without_method(step)) for step in steps]
        return [(name, methods.load(kind, name).Options.model_validate(options)) for name, options in names_and_options]

    def files(self, stage: str) -> list[Path]:
        """Returns the values of those options of a stage that are paths."""
        steps = self.steps(stage) if isinstance(getattr(self, stage), (dict, list)) else ()
        return [path for _, options in steps for _, path in path_options(options)]

    def resolved(self) -> dict[str, Any]:
        """Returns the whole recipe with every default filled in, as values that YAML and JSON can hold."""
        content = self.model_dump(mode="json")
        content["task"] = {"method": self.task_name, **self.task_options().model_dump(mode="json")}
        for stage in KIND_OF_STAGE:
            if content[stage] is not None:
                steps = _dump_steps(self.steps(stage))
                content[stage] = steps if isinstance(content[stage], list) else steps[0]
        return content

    def options(self, stage: str) -> BaseModel:
        """Returns a stage's validated options; defaults are filled in."""
        section = getattr(self, stage)
        if isinstance(section, list):
            return Steps(steps=tuple(_dump_steps(self.steps(stage))))
        if isinstance(section, dict):
            return self.steps(stage)[0][1]
        return section if section is not None else Options()


def move_earlier_keys(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Moves `serve.max_windows`, where older recipes have it, to the options of the task."""
    serve = content.get("serve")
    if not isinstance(serve, dict) or "max_windows" not in serve:
        return content
    logger.warning("serve.max_windows is now an option of the task: task: {method: ..., max_windows: ...}")
    options = {"max_windows": serve["max_windows"]}
    serve = {key: value for key, value in serve.items() if key != "max_windows"}
    task = content.get("task")
    if isinstance(task, (str, dict)):  # otherwise the validation of `Recipe` reports it
        task = {**options, **(task if isinstance(task, dict) else {"method": task})}
        return {**content, "task": task, "serve": serve}
    return {**content, "serve": serve}


def _number_to_string(value: Any) -> Any:
    """Returns a whole number as a string, and anything else as it is."""
    return str(value) if type(value) is int else value


def as_list(section: Any) -> list[dict[str, Any]]:
    """Returns the steps of a stage as a list, even if its section is a single step."""
    return section if isinstance(section, list) else [section]


def without_method(step: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a step without the key `method`."""
    return {key: value for key, value in step.items() if key != "method"}


def _dump_steps(steps: Sequence[tuple[str, Options]]) -> list[dict[str, Any]]:
    """Returns steps as a recipe has them: `method` and its options."""
    return [{"method": name, **options.model_dump(mode="json")} for name, options in steps]


def path_options(options: BaseModel) -> Iterator[tuple[str, Path]]:
    """Yields name and value of the options that are paths."""
    return ((name, value) for name, value in options if isinstance(value, Path))
