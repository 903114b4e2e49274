"""The heads of a task that consists of several: their options, and the parts of the data and outputs that they own."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, field_validator

from deploykit import tasks
from deploykit.methods import Options
from deploykit.tasks import IGNORED, Array, Column, Example, Spec
from deploykit.tokenizer import Features

HEAD_TASKS = ("text-classification", "multi-label-classification", "regression", "token-classification")
COLUMNS = {
    "text": Column("text", "the text; not read where a head reads `tokens`"),
    "text_pair": Column(None, "the second text; naming it makes this a task on pairs of texts"),
    "tokens": Column("tokens", "the list of words, for heads that label them"),
    "head": Column(None, "the name of the only head that a row has labels of; empty: all whose columns it has"),
}


class HeadOptions(Options):
    """One head."""

    method: str
    """The task of the head."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Names of the columns that hold its labels, by role, where they are not the task's own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of its task."""
    labels: tuple[str, ...] = ()
    """Its labels, in the order of its outputs; set by training."""

    @field_validator("method")
    @classmethod
    def _fits(cls, method: str) -> str:
        if method not in HEAD_TASKS:
            raise ValueError(f"{method!r} cannot be a head, expected one of {', '.join(HEAD_TASKS)}")
        return method

    @cached_property
    def spec(self) -> Spec:
        """The labels and the options of the task."""
        return Spec(self.labels, tasks.load(self.method).Options.model_validate(self.options))

    def learned(self, labels: tuple[str, ...], options: BaseModel) -> "HeadOptions":
        """Returns the head with its labels, and the options of its task after training."""
        content = options.model_dump(mode="json")
        return HeadOptions(method=self.method, columns=self.columns, options=content, labels=labels)


class Head:
    """A head: a task, whose outputs and targets have the head's name before theirs in the whole model."""

    def __init__(self, name: str, options: HeadOptions) -> None:
        self.name, self.method, self.task = name, options.method, tasks.load(options.method)
        roles = {role: column.default for role, column in self.task.COLUMNS.items() if role not in COLUMNS}
        self.columns = roles | options.columns  # of its labels, by role

    def require_roles(self, columns: Mapping[str, str | None]) -> None:
        """Raises ValueError if a column is named for a role that the task does not have."""
        roles = [role for role in self.task.COLUMNS if role not in COLUMNS]
        for role in columns:
            if role not in roles:
                raise ValueError(f"{self.name}: {self.method} has no column {role!r}. It has: {', '.join(roles)}.")

    def describe(self) -> str:
        """Returns the name and the columns of the labels."""
        return f"{self.name} ({', '.join(filter(None, self.columns.values()))})"

    def prefixed(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Returns outputs or targets of the task by their names in the whole model."""
        return {f"{self.name}/{key}": value for key, value in named.items()}

    def own(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those outputs or targets of the whole model that are the head's, by their names in its task."""
        prefix = f"{self.name}/"
        return {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}

    def is_labelled(self, row: Mapping[str, Any]) -> bool:
        """Says whether a row of data has a value in a column of the head's labels."""
        names = [name.strip() for column in self.columns.values() if column for name in column.split(",")]
        return any(row.get(name) not in (None, "") for name in names)

    def read(self, row: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Example]) -> Example:
        """Reads a row; a missing column of its labels is a ValueError, because only `Head` knows its name."""
        try:
            return read(row)
        except KeyError as error:
            if error.args[0] in self.columns.values():
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
