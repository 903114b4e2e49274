"""How a graph is run: chosen by the selection, kept in the manifest, used by the service."""

from typing import Literal

from pydantic import Field

from deploykit.methods import Frozen

Precision = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]


class Execution(Frozen):
    """An engine and its settings.

    `precision` is that of the operators that a graph leaves in float. `streams` calls run at the same time, each on
    `threads` threads. `batch_tokens` is the number of padded tokens in the most efficient batch; larger ones exceed the
    cache. `features` are the CPU features that the choice relied on.
    """

    engine: str = "onnxruntime"
    precision: Precision = "float32"
    device: Device = "cpu"
    threads: int = Field(default=1, ge=1)
    streams: int = Field(default=1, ge=1)
    batch_tokens: int = Field(default=1024, ge=1)
    features: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, str, str]:
        """The settings that change answers: all but threads and batches."""
        return self.engine, self.precision, self.device

    def on(self, cores: int) -> "Execution":
        """Returns a copy that uses `cores`: all for one call if there is one stream, otherwise one stream per core."""
        threads, streams = (cores, 1) if self.streams == 1 else (1, cores)
        return self.model_copy(update={"threads": threads, "streams": streams})

    def __str__(self) -> str:
        where = self.engine + (f" {self.precision}" if self.precision != "float32" else "")
        where += f" on {self.device}" if self.device != "cpu" else ""
        return f"{where}, {self.streams} x {self.threads} threads" if self.streams > 1 else where
