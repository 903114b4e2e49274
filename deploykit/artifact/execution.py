"""How a graph is run: a value that the selection measures, the manifest keeps and the service obeys."""

from typing import Literal

from pydantic import Field

from deploykit.methods import Frozen

Precision = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]


class Execution(Frozen):
    """An engine and its settings.

    `precision` is that of the arithmetic that a graph leaves in float, `threads` are those of one call,
    `streams` calls run at the same time, `batch_tokens` padded tokens make the batch that runs best (larger
    ones leave the cache), and `features` are those of the CPU that the choice relied on.
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
        """What decides the answers: all but the threads."""
        return self.engine, self.precision, self.device

    def on(self, cores: int) -> "Execution":
        """Returns the same with all of `cores`: to one call, or one to each of several calls, as it is here."""
        shared = self.streams == 1
        return self.model_copy(update={"threads": cores if shared else 1, "streams": 1 if shared else cores})

    def __str__(self) -> str:
        where = self.engine + (f" {self.precision}" if self.precision != "float32" else "")
        where += f" on {self.device}" if self.device != "cpu" else ""
        return f"{where}, {self.streams} x {self.threads} threads" if self.streams > 1 else where
