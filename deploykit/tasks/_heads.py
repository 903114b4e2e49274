"""The heads of `multi_task`: their options, the columns of their labels, and the names of their outputs."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, field_validator

from deploykit import methods, tasks
from deploykit.tasks import IGNORE_INDEX, Array, Column, Example, Spec, TextOptions
from deploykit.tokenizer import Features

HEAD_TASKS = ("text-classification", "multi-label-classification", "regression", "token-classification")  # may be heads
DEFAULT_MAX_WINDOWS = TextOptions().max_windows
COLUMNS = {  # by role, that all heads share; each head has further columns for its labels
    "text": Column("text", "the text; not read where a head reads `tokens`"),
    "text_pair": Column(None, "the second text; naming it makes this a task on pairs of texts"),
    "tokens": Column("tokens", "the list of words, for heads that label them"),
    "head": Column(None, "the name of the only head that a row has labels of; empty: all whose columns it has"),
}
# No head may have these names: they are fields of answers, of records and of the Python client, beside the heads' own.
RESERVED_HEAD_NAMES = {
    *("request", "index", "label", "score", "scores", "labels", "entities", "relations", "answer", "start", "end"),
    *("context", "tokens", "windows", "truncated", "abstained", "record"),
}


class HeadOptions(methods.Options):
    """Options of a head: its task, the columns of its labels, and the labels that training finds there."""

    method: str
    """Name of its task."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Names of the columns that hold its labels, by role, where they are not the task's own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of its task."""
    labels: tuple[str, ...] = ()
    """Its labels, in the order of its outputs; set by training."""

    @field_validator("method")
    @classmethod
    def _is_head_task(cls, method: str) -> str:
        if method not in HEAD_TASKS:
            raise ValueError(f"{method!r} cannot be a head, expected one of {', '.join(HEAD_TASKS)}")
        return method

    @field_validator("options")
    @classmethod
    def _leaves_windows_to_the_task(cls, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("max_windows", DEFAULT_MAX_WINDOWS) != DEFAULT_MAX_WINDOWS:
            raise ValueError("all heads read the same windows: set max_windows of the task, and not of a head")
        return options

    @cached_property
    def spec(self) -> Spec:
        """The labels of the head, and the options of its task."""
        return Spec(self.labels, tasks.load(self.method).Options.model_validate(self.options))

    def with_training_results(self, labels: tuple[str, ...], options: BaseModel) -> "HeadOptions":
        """Returns the options of the head with the labels, and the options of its task, that training has found."""
        task_options = options.model_dump(mode="json")
        return HeadOptions(method=self.method, columns=self.columns, options=task_options, labels=labels)


class Head:
    """One head of the model: a task whose outputs and targets are called `HEAD/NAME` in the whole model.

    `columns` are the names of the columns that hold its labels, by role.
    """

    def __init__(self, name: str, options: HeadOptions) -> None:
        self.name, self.task_name, self.task = name, options.method, tasks.load(options.method)
        self._roles = [role for role in self.task.COLUMNS if role not in COLUMNS]  # of labels, not of texts
        self.columns = {role: self.task.COLUMNS[role].default for role in self._roles} | options.columns

    def check_roles(self, columns: Mapping[str, str | None]) -> None:
        """Raises ValueError if `columns` has a role that the task does not know."""
        for role in columns:
            if role not in self._roles:
                known = ", ".join(self._roles)
                raise ValueError(f"{self.name}: {self.task_name} has no column {role!r}. It has: {known}.")

    def describe(self) -> str:
        """Returns the head's name and the columns of its labels, for messages."""
        return f"{self.name} ({', '.join(filter(None, self.columns.values()))})"

    def add_prefix(self, by_name: Mapping[str, Any]) -> dict[str, Any]:
        """Renames outputs, targets or arrays of the head's task to their names in the whole model."""
        return {f"{self.name}/{name}": value for name, value in by_name.items()}

    def select(self, by_name: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the entries of the whole model that belong to this head, under their names in the head's task."""
        prefix = f"{self.name}/"
        return {name.removeprefix(prefix): value for name, value in by_name.items() if name.startswith(prefix)}

    def is_labelled(self, row: Mapping[str, Any]) -> bool:
        """Says whether a row of data has a value in any column of the head's labels.

        Raises:
            ValueError: the only value is an empty cell of a list of labels. It may mean that the row has no label, or
                that nobody labelled the row for this head.
        """
        names = [name.strip() for column in self.columns.values() if column for name in column.split(",")]
        if any(row.get(name) not in (None, "") for name in names):
            return True
        list_column = self.columns.get("labels")
        if list_column and not self.columns.get("label_columns") and row.get(list_column) == "":
            raise ValueError(
                f"has an empty {list_column!r}: either no label of the head {self.name!r} applies, or nobody has"
                " labelled the row for this head. Name the column `data.head`, which says so, or give the lists in JSON"
            )
        return False

    def read_row(self, row: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Example]) -> Example:
        """Reads a row of data with `read`, the reader of the head's task.

        Raises:
            ValueError: a column of the head's labels is missing; the message names the head.
            KeyError: another column is missing.
        """
        try:
            return read(row)
        except KeyError as error:
            if any(error.args[0] in (column or "").replace(" ", "").split(",") for column in self.columns.values()):
                raise ValueError(f"has no {error.args[0]!r}, which the head {self.name!r} reads") from error
            raise

    def ignored_targets(self, features: Features, spec: Spec) -> dict[str, Array]:
        """Returns targets that the losses skip, for a row that has no labels of this head.

        Cross-entropy skips `IGNORE_INDEX`; the losses of numbers skip NaN.
        """
        sizes, targets = {"tokens": len(features), "labels": len(spec.labels)}, dict[str, Array]()
        for name, target in self.task.TARGETS.items():
            shape = [sizes[axis] for axis in target.axes]
            is_index = target.loss == "cross_entropy"
            targets[name] = np.full(shape, IGNORE_INDEX) if is_index else np.full(shape, np.nan, dtype=np.float32)
        return targets


class Options(TextOptions):
    """The heads, and how they read long texts."""

    heads: dict[str, HeadOptions] = Field(
        default_factory=lambda: {
            "intent": HeadOptions(method="text-classification", columns={"label": "intent"}),
            "slots": HeadOptions(method="token-classification"),
        },
        min_length=1,
    )
    """The heads by name, each with `method`, the name of its task, and `columns`, where its labels stand."""

    @field_validator("heads")
    @classmethod
    def _are_valid(cls, heads: dict[str, HeadOptions]) -> dict[str, HeadOptions]:
        for name, head in heads.items():
            is_taken = name in RESERVED_HEAD_NAMES or name.startswith(("_", "model_")) or hasattr(BaseModel, name)
            if is_taken or not name.replace("_", "").isalnum():
                raise ValueError(
                    f"a head cannot be called {name!r}, expected letters, digits and underscores, no method of"
                    f" pydantic's models, and none of {', '.join(sorted(RESERVED_HEAD_NAMES))}"
                )
            _ = head.spec  # validates the options of its task
            Head(name, head).check_roles(head.columns)
        return heads
