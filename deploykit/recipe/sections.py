"""The sections of a recipe whose keys do not depend on a method."""

import logging
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from deploykit.methods import Options

Format = Literal[
    "csv", "tsv", "jsonl", "json", "parquet", "conll", "squad", "brat", "doccano", "label-studio", "datasets"
]
HEAD_COLUMN = "head"  # added to rows of a file for each head: the name of the head
logger = logging.getLogger(__name__)


class DataSection(Options):
    """Where the labelled data is, and the names of its columns."""

    train: str | dict[str, str]
    """A file or a directory in one of the formats that are read, or the id of a data set on the hub. For `multi-task`,
    it may be a file for each head, by the head's name."""
    validation: str | dict[str, str] | None = None
    """A file, a directory, or a split of the data set. If left out, it is cut from `train`, stratified and seeded."""
    test: str | dict[str, str] | None = None
    """A file, a directory, or a split of the data set. If left out, it is cut from `train`, stratified and seeded."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the training rows that becomes the validation split if none is named."""
    test_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the training rows that becomes the test split if none is named."""
    format: Format | None = None
    """Format of all files, if neither suffix nor content tells it."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Names of the columns that the task reads, by role, where they are not the task's own. They may also stand beside
    `train`: `data: {train: reviews.csv, text: body}`."""
    slice: str | None = None
    """Column whose values divide the rows into slices, for example a language or a source."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Longest input in tokens; null is the limit of the model."""
    allow_leakage: bool = False
    """Allows a text to occur in two splits, which otherwise stops the run."""

    @field_validator("train", "validation", "test", mode="before")
    @classmethod
    def _check_source(cls, source: Any) -> Any:
        sources = list(source.values()) if isinstance(source, dict) else [source]
        if source is not None and not (sources and all(isinstance(part, str) for part in sources)):
            raise ValueError("must be a file, a directory or a data set, or a file for each head")
        return source

    @model_validator(mode="before")
    @classmethod
    def _collect_columns(cls, content: Any) -> Any:
        """Moves keys that name columns into `columns`; whether the task has such columns, `recipe.parse` checks."""
        if not isinstance(content, dict):
            return content
        columns = cls.columns_in(content)
        if isinstance(content.get("train"), dict):
            columns = {"head": HEAD_COLUMN, **columns}
        others = {key: value for key, value in content.items() if key in cls.model_fields or key not in columns}
        return {**others, "columns": columns} if columns else others

    @classmethod
    def columns_in(cls, content: Any) -> dict[str, Any]:
        """Returns the names of columns by role, from `columns` and from the keys beside the section's own ones.

        Args:
            content: of the section, not validated.
        """
        if not isinstance(content, dict):
            return {}
        columns = content.get("columns")
        in_columns: dict[str, Any] = columns if isinstance(columns, dict) else {}
        other_keys = {key: value for key, value in content.items() if key not in cls.model_fields}
        return {
            **{key: value for key, value in other_keys.items() if value is None or isinstance(value, str)},
            **in_columns,
        }


class ExportSection(Options):
    """How the graph is exported."""

    opset: int = Field(default=18, ge=14, le=20)
    """Version of the ONNX operator set."""
    tolerance: float = Field(default=1e-3, gt=0)
    """Largest difference between a logit of the graph and of torch, both in float32."""


class GateSection(Options):
    """Limits for the result, measured on the validation split; null sets no limit.

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
    def _rename_earlier_key(cls, content: Any) -> Any:
        if isinstance(content, dict) and "cannot_tell" in content and "inconclusive" not in content:
            logger.warning("gates.cannot_tell is now called gates.inconclusive; rename the key in your recipe")
            content = {("inconclusive" if key == "cannot_tell" else key): value for key, value in content.items()}
        return content


class PackageSection(Options):
    """What goes into the package besides the chosen graph."""

    store: bool = True
    """Adds the package to BentoML's model store, too."""
    float_graph: bool = True
    """Adds the float graph, for machines on which the chosen graph cannot run."""
    golden: int = Field(default=64, ge=1, le=1024)
    """Number of validation texts in the golden set."""
