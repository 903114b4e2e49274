"""From texts to scores: a tokenizer, a task and an engine put together.

Evaluation, the golden set and the service all predict through this object, on any engine. It knows
nothing of metrics, queues or requests.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from deploykit import engines, tasks
from deploykit.artifact import CONFIG, GRAPH, Artifact
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError
from deploykit.tasks import Float32, Task
from deploykit.tokenizer import Batch, Encoding, Side, Tokenizer

ROWS = range(1, 65)  # of batches that are run ahead
LIKE = 2  # times as long as the shortest of a batch may the longest be


@dataclass(frozen=True)
class Predictor:
    """Everything that a prediction needs."""

    task: Task
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    engine: engines.Engine

    @classmethod
    def load(
        cls, artifact: Artifact, cores: int, execution: Execution | None = None, graph: str = GRAPH
    ) -> "Predictor":
        """Opens an artifact.

        Args:
            artifact: of any kind.
            cores: that the engine may use.
            execution: how to run it; default: as the manifest says, on that many cores.
            graph: which file, where the artifact holds graphs.

        Raises:
            ArtifactError: the model's configuration gives its outputs other labels than the manifest.
        """
        manifest = artifact.manifest
        _check_labels(artifact)
        execution = execution or manifest.execution.on(cores)
        module = engines.load(execution.engine)
        model = artifact.file(graph) if module.KIND == "onnx" else artifact.path
        return cls(
            task=tasks.load(manifest.task),
            labels=manifest.labels,
            tokenizer=Tokenizer.load(artifact.path, manifest.max_tokens),
            engine=module.load(model, execution),
        )

    def scores(
        self,
        texts: Sequence[str],
        encodings: Sequence[Encoding],
        padding_side: Side | None = None,
    ) -> list[Float32]:
        """Runs one batch, padded to a shape that the engine runs well.

        Args:
            texts: the first text of each input.
            encodings: what `tokenizer.encode` made of them.
            padding_side: overrides the tokenizer's own.

        Returns:
            One array `(units, labels)` an input.
        """
        batch = padded(encodings, self.tokenizer, self.engine, padding_side)
        logits = self.engine.run(batch)[: len(encodings)]
        width = batch["input_ids"].shape[1]
        found = []
        for row, text, encoding in zip(logits, texts, encodings, strict=True):
            real = row[self.tokenizer.place(len(encoding), width, padding_side)] if row.ndim == 2 else row
            found.append(self.task.scores(real, text, encoding))
        return found

    def warm(self, batch_tokens: int, seconds: float) -> int:
        """Runs batches of the shapes that the engine compiles when it first meets them, small ones first.

        Args:
            batch_tokens: the most padded tokens of one batch.
            seconds: after which no other is begun.

        Returns:
            How many shapes were met; 0 where the engine compiles none.
        """
        if self.engine.shape(1, 1) == (1, 1):
            return 0
        most = self.tokenizer.max_tokens
        shapes = {self.engine.shape(rows, tokens) for tokens in range(1, most + 1) for rows in ROWS}
        end, met = time.monotonic() + seconds, 0
        for rows, tokens in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
            if rows * tokens > batch_tokens or time.monotonic() > end:
                break
            self.engine.run(self.tokenizer.collate(self.tokenizer.encode([""] * rows), tokens=tokens))
            met += 1
        return met

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        batch_tokens: int | None = None,
        track: Callable[[list[list[int]]], Iterable[list[int]]] = iter,
    ) -> list[Float32]:
        """Scores any number of inputs, sorted by length and cut into batches of few padding tokens.

        Args:
            texts: the first text of each input.
            pairs: the second texts, where the model takes pairs.
            batch_tokens: the most padded tokens of one batch, default as the engine runs best; a longer input runs
                alone.
            track: wraps the batches, for a progress bar.

        Returns:
            One array `(units, labels)` an input, in the order given.
        """
        encodings = self.tokenizer.encode(texts, pairs)
        budget = batch_tokens or self.engine.execution.batch_tokens
        work = batches([len(encoding) for encoding in encodings], budget, self.engine.shape)

        def run(rows: list[int]) -> list[Float32]:
            return self.scores([texts[index] for index in rows], [encodings[index] for index in rows])

        found: dict[int, Float32] = {}
        together = self.engine.execution.streams > 1 and len(work) > 1
        answers = self._threads.map(run, work) if together else map(run, work)
        for rows, scores in zip(track(work), answers, strict=True):
            found.update(zip(rows, scores, strict=True))
        return [found[index] for index in range(len(texts))]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """One thread for each stream of the engine, kept for the next call."""
        return ThreadPoolExecutor(self.engine.execution.streams, thread_name_prefix="predictor")


def _check_labels(artifact: Artifact) -> None:
    """Labels are names of outputs, so their order is part of the model."""
    file, labels = artifact.file(CONFIG), list(artifact.manifest.labels)
    names = json.loads(file.read_text(encoding="utf-8")).get("id2label", {}) if file.is_file() else {}
    found = [names[index] for index in sorted(names, key=int)]
    if found and found != labels:
        raise ArtifactError(
            f"{file} gives the outputs the labels {found}, the manifest {labels}: one of the two belongs to another"
            " model. Build the artifact again."
        )


def padded(
    encodings: Sequence[Encoding], tokenizer: Tokenizer, engine: engines.Engine, padding_side: Side | None = None
) -> Batch:
    """Pads encodings to a shape that the engine runs well; the first one fills rows that are added at the end."""
    rows, tokens = engine.shape(len(encodings), max(map(len, encodings)))
    return tokenizer.collate([*encodings, *[encodings[0]] * (rows - len(encodings))], padding_side, tokens)


def batches(
    lengths: Sequence[int], batch_tokens: int, shape: Callable[[int, int], tuple[int, int]] | None = None
) -> list[list[int]]:
    """Cuts inputs into batches of like lengths, short ones first.

    Args:
        lengths: in tokens.
        batch_tokens: the most of one padded batch; a longer input runs alone.
        shape: to which the engine pads, default as they are. What is longest is batched first, so that rows are added
            to batches of shorter ones.

    Returns:
        The indices of each batch.
    """
    shape, order = shape or (lambda *exact: exact), sorted(range(len(lengths)), key=lengths.__getitem__)
    found = []
    while order:
        longest, rows = lengths[order[-1]], 1
        while (
            rows < len(order)
            and math.prod(shape(rows + 1, longest)) <= batch_tokens
            and LIKE * lengths[order[-rows - 1]] >= longest
        ):
            rows += 1
        found.append(order[-rows:])
        del order[-rows:]
    return found[::-1]
