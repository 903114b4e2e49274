"""The manifest of an artifact: everything that later stages, the service and the report need to know."""

import logging
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from deploykit.artifact.cost import Cost
from deploykit.artifact.execution import Execution
from deploykit.methods import Frozen, Options

# A machine is busy if other processes held the cores for more than this share of a measurement. Its times are then
# shown with a warning.
BUSY_SHARE = 0.05
Kind = Literal["checkpoint", "onnx", "package"]
logger = logging.getLogger("deploykit.artifact")


class FileEntry(Frozen):
    """A file of an artifact: sha256 in hexadecimal, and size in bytes."""

    sha256: str
    bytes: int


class Metric(Frozen):
    """A measured value with the ends of its 95 % interval; `f"{metric:.4f}"` writes all three."""

    value: float
    low: float
    high: float

    def __format__(self, number_format: str) -> str:
        # The option `z` writes a negative number that rounds to zero without its sign.
        value, low, high = (format(number, f"z{number_format}") for number in (self.value, self.low, self.high))
        return value if low == high else f"{value} (95 % interval {low} to {high})"


class Step(Frozen):
    """The result of one stage.

    `key` is the content key of its artifact. `seconds` is how long the stage took. `bytes` is the size of the weights
    or of the graph. `p50_ms` is the median time in milliseconds for one input of median length on the step's engine;
    all steps of a manifest are timed in turn, so that they can be compared. `waited_share` is the share of that
    measurement in which other processes held the cores. `metrics` are by split and name.
    """

    stage: str
    method: str
    key: str
    seconds: float
    parameters: int
    bytes: int
    p50_ms: float
    waited_share: float = Field(default=0.0, ge=0)
    metrics: dict[str, dict[str, Metric]]

    @property
    def is_busy(self) -> bool:
        """Whether the machine was too busy for `p50_ms` to be trusted."""
        return self.waited_share > BUSY_SHARE


class RecordOptions(Options):
    """Which texts a service records for inspection."""

    share: float = Field(default=0.01, gt=0, le=1)
    """Share of the texts that are recorded."""
    megabytes: int = Field(default=64, ge=1)
    """Maximum size of all files together."""


class ServeOptions(Options):
    """How a package is served; the service reads it from the manifest."""

    max_batch_tokens: int = Field(default=4096, ge=1)
    """Maximum number of tokens in a padded batch."""
    max_batch_items: int = Field(default=64, ge=1)
    """Maximum number of texts in a batch."""
    max_queue_tokens: int = Field(default=65536, ge=1)
    """Maximum number of tokens in the queue."""
    max_wait_s: float = Field(default=0.5, gt=0)
    """Longest wait in the queue in seconds; a text that would wait longer is refused with 503."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Deadline of a request in seconds."""
    stuck_s: float = Field(default=60.0, ge=1)
    """Seconds after which a process whose engine or event loop hangs is restarted."""
    max_texts: int = Field(default=256, ge=1)
    """Maximum number of texts in a request."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Maximum size of a request in bytes; the default for tasks on images is 12 MiB."""
    redact: bool = False
    """Masks personal data before the model reads a text."""
    redact_names: str | None = Field(default=None, min_length=1)
    """The spaCy model that finds names of people to mask; null leaves names as they are."""
    records: RecordOptions | None = None
    """Which texts and answers are recorded; null records nothing."""
    extras: tuple[Literal["jwt", "otel", "presidio", "redis", "sign"], ...] = ()
    """Extras of deploykit that the service uses; their packages are pinned with the others."""
    ui: bool = True
    """Serves a page at /ui on which the model can be tried."""
    threads: int | None = Field(default=None, ge=1)
    """Cores for the engine; null uses all that the cgroup allows."""

    @model_validator(mode="before")
    @classmethod
    def _drop_batching(cls, content: Any) -> Any:
        """Drops the key `batching` of older recipes and packages, which no longer has an effect."""
        if isinstance(content, dict) and "batching" in content:
            if content["batching"] != "cost":
                logger.warning("serve.batching has no effect any more: texts are batched by cost; remove the key")
            content = {key: value for key, value in content.items() if key != "batching"}
        return content

    def with_defaults(self, defaults: Mapping[str, Any]) -> Self:
        """Returns the options with the defaults of a task for those that the recipe leaves out."""
        return self.model_copy(
            update={name: value for name, value in defaults.items() if name not in self.model_fields_set}
        )

    @model_validator(mode="after")
    def _require_masking(self) -> Self:
        """Refuses `redact_names` where nothing is masked."""
        if self.redact_names and not (self.redact or self.records):
            raise ValueError("redact_names adds to what `redact: true` or `records` mask; set one of them, too")
        return self


class Manifest(Frozen):
    """The record inside an artifact.

    `labels` are in the order of the model's outputs. `pair` says whether an input is two texts, or an image with a
    text. `key` is the content key, and `parent_key` and `parent_digest` are key and digest of the artifact that the
    stage started from. `execution` is how the model is run. `weights_precision` is the number format of the weights in
    its layers: `float32`, `float16`, `int8` or `int4`. `cost` is the latency model of its batches, if it was measured.
    `history` lists the stages so far, the one that wrote this artifact last. `details` has other results of each stage,
    such as data summary, learning curve, parity, candidates and prediction changes.
    """

    format_version: int
    kind: Kind
    name: str
    task: str
    task_options: dict[str, Any]
    labels: tuple[str, ...]
    pair: bool
    max_tokens: int
    base_model: str
    base_revision: str
    stage: str
    method: str
    options: dict[str, Any]
    key: str
    parent_key: str
    parent_digest: str
    seed: int
    files: dict[str, FileEntry]
    history: tuple[Step, ...] = Field(min_length=1)
    execution: Execution
    weights_precision: str
    cost: Cost | None
    serve: ServeOptions
    details: dict[str, dict[str, Any]]
    hardware: dict[str, Any]
    versions: dict[str, str]
    created: str

    @property
    def version(self) -> str:
        """The version of the model that clients see: the beginning of the key."""
        return self.key[:12]

    @property
    def own_details(self) -> dict[str, Any]:
        """The results in `details` of the stage that wrote this artifact."""
        return self.details[self.stage]

    @property
    def step(self) -> Step:
        """The last step of the history: that of the stage that wrote this artifact."""
        return self.history[-1]


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Converts the content of a manifest from an older format to the newest one."""
    for version, convert in ((2, _from_format_2), (3, _from_format_3)):
        if content["format_version"] <= version:
            content = convert(content)
    return content


def _from_format_3(content: dict[str, Any]) -> dict[str, Any]:
    """Moves the number of windows from the options of the service to those of the task, which format 4 requires."""
    options = {"max_windows": content["serve"].get("max_windows", 16)}
    serve = {name: value for name, value in content["serve"].items() if name != "max_windows"}
    return {**content, "task_options": options, "serve": serve}


def _from_format_2(content: dict[str, Any]) -> dict[str, Any]:
    """Adds the precision of the weights, which format 3 requires: that of the chosen candidate, or else float32."""
    details = content["details"]
    candidates = details.get("retune", details.get("quantize", {})).get("candidates", ())
    chosen_precisions = [candidate["precision"] for candidate in candidates if candidate["kept"]]
    return {**content, "weights_precision": chosen_precisions[0] if chosen_precisions else "float32"}
