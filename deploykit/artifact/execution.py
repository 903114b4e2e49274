"""How a graph is run. The selection chooses it, the manifest records it, and the service follows it."""

from typing import Literal

from pydantic import Field

from deploykit.methods import Frozen

Precision = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]


class Execution(Frozen):
    """An engine and its settings.

    `precision` is that of the operators that are in floating point. `streams` is the number of calls that run at the
    same time, each on `threads` threads. `batch_tokens` is the number of tokens, with padding, in the most efficient
    batch; larger batches exceed the cache. `features` are the CPU features that the choice depends on.
    """

    engine: str = "onnxruntime"
    precision: Precision = "float32"
    device: Device = "cpu"
    threads: int = Field(default=1, ge=1)
    streams: int = Field(default=1, ge=1)
    batch_tokens: int = Field(default=1024, ge=1)
    features: tuple[str, ...] = ()

    @property
    def backend(self) -> tuple[str, str, str]:
        """Engine, precision and device: the settings on which answers depend."""
        return self.engine, self.precision, self.device

    def with_cores(self, cores: int) -> "Execution":
        """Returns a copy for a number of cores: a single stream gets all of them, several become one per core."""
        threads, streams = (cores, 1) if self.streams == 1 else (1, cores)
        return self.model_copy(update={"threads": threads, "streams": streams})

    def __str__(self) -> str:
        text = self.engine + (f" {self.precision}" if self.precision != "float32" else "")
        text += f" on {self.device}" if self.device != "cpu" else ""
        return f"{text}, {self.streams} x {self.threads} threads" if self.streams > 1 else text
