"""The heads of a task that consists of several: their options, and the parts of the data and outputs that they own."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, field_validator

from deploykit import methods, tasks
from deploykit.tasks import IGNORED, Array, Column, Example, Spec, TextOptions
from deploykit.tokenizer import Features

HEAD_TASKS = ("text-classification", "multi-label-classification", "regression", "token-classification")
DEFAULT_WINDOWS = TextOptions().max_windows
COLUMNS = {
    "text": Column("text", "the text; not read where a head reads `tokens`"),
    "text_pair": Column(None, "the second text; naming it makes this a task on pairs of texts"),
    "tokens": Column("tokens", "the list of words, for heads that label them"),
    "head": Column(None, "the name of the only head that a row has labels of; empty: all whose columns it has"),
}


# Fields of answers, of records and of the Python client, which a head cannot be called.
RESERVED = {
    *("request", "index", "label", "score", "scores", "labels", "entities", "relations", "answer", "start", "end"),
    *("context", "tokens", "windows", "truncated", "abstained", "record"),
}


class HeadOptions(methods.Options):
    """Options of a head: its task, where its labels stand in the data, and what training adds."""

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
    def _reads_as_the_task(cls, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("max_windows", DEFAULT_WINDOWS) != DEFAULT_WINDOWS:
            raise ValueError("all heads read the same windows: set max_windows of the task, and not of a head")
        return options

    @cached_property
    def spec(self) -> Spec:
        """The labels and the options of the task."""
        return Spec(self.labels, tasks.load(self.method).Options.model_validate(self.options))

    def trained(self, labels: tuple[str, ...], options: BaseModel) -> "HeadOptions":
        """Returns the head with its labels, and the options of its task after training."""
        content = options.model_dump(mode="json")
        return HeadOptions(method=self.method, columns=self.columns, options=content, labels=labels)


class Head:
    """An output head: a task, and the prefix `NAME/` that its outputs and targets have in the whole model."""

    def __init__(self, name: str, options: HeadOptions) -> None:
        self.name, self.task_name, self.task = name, options.method, tasks.load(options.method)
        self._roles = [role for role in self.task.COLUMNS if role not in COLUMNS]
        # Names of the columns with its labels, by role.
        self.columns = {role: self.task.COLUMNS[role].default for role in self._roles} | options.columns

    def require_roles(self, columns: Mapping[str, str | None]) -> None:
        """Raises ValueError if a column is named for a role that the task does not have."""
        for role in columns:
            if role not in self._roles:
                known = ", ".join(self._roles)
                raise ValueError(f"{self.name}: {self.task_name} has no column {role!r}. It has: {known}.")

    def describe(self) -> str:
        """Returns the name and the columns of the labels."""
        return f"{self.name} ({', '.join(filter(None, self.columns.values()))})"

    def prefixed(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Returns outputs or targets of the task by their names in the whole model."""
        return {f"{self.name}/{key}": value for key, value in named.items()}

    def select(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those outputs or targets of the whole model that are the head's, by their names in its task."""
        prefix = f"{self.name}/"
        return {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}

    def is_labelled(self, row: Mapping[str, Any]) -> bool:
        """Says whether a row of data has a value in a column of the head's labels.

        Raises:
            ValueError: a cell of a list of labels is empty, which may mean no label, or that the row was not labelled.
        """
        names = [name.strip() for column in self.columns.values() if column for name in column.split(",")]
        if any(row.get(name) not in (None, "") for name in names):
            return True
        lists = self.columns.get("labels")
        if lists and not self.columns.get("label_columns") and row.get(lists) == "":
            raise ValueError(
                f"has an empty {lists!r}, so that the head {self.name!r} may have no label there, or no row: name the"
                " column `data.head`, which says it, or give lists in JSON"
            )
        return False

    def read_row(self, row: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Example]) -> Example:
        """Reads a row of data; a missing column of labels becomes a ValueError that names the head."""
        try:
            return read(row)
        except KeyError as error:
            if any(error.args[0] in (column or "").replace(" ", "").split(",") for column in self.columns.values()):
                raise ValueError(f"has no {error.args[0]!r}, which the head {self.name!r} reads") from error
            raise

    def no_targets(self, features: Features, spec: Spec) -> dict[str, Array]:
        """Returns the targets of a row without labels of this head."""
        sizes = {"tokens": len(features), "labels": len(spec.labels)}
        return {
            name: np.full([sizes[axis] for axis in target.axes], IGNORED)
            if target.loss == "cross_entropy"
            else np.full([sizes[axis] for axis in target.axes], np.nan, dtype=np.float32)
            for name, target in self.task.TARGETS.items()
        }


class Options(TextOptions):
    """The heads."""

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
            taken = name in RESERVED or name.startswith(("_", "model_")) or hasattr(BaseModel, name)
            if taken or not name.replace("_", "").isalnum():
                raise ValueError(
                    f"a head cannot be called {name!r}, expected letters, digits and underscores, no method of"
                    f" pydantic's models, and none of {', '.join(sorted(RESERVED))}"
                )
            _ = head.spec  # its options are validated
            Head(name, head).require_roles(head.columns)
        return heads
