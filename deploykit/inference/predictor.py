"""From texts to scores: a tokenizer, a task and an engine.

Evaluation, the golden set and the service all predict through this object, on any engine.
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

WARM_UP_ROWS = range(1, 65)  # of batches that are compiled ahead
MAX_LENGTH_RATIO = 2  # longest to shortest text in one batch


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
            cores: for the engine.
            execution: how to run it; default: as the manifest says, on that many cores.
            graph: name of the file, if the artifact holds graphs.

        Raises:
            ArtifactError: the model's configuration has other labels than the manifest.
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
            encodings: of the inputs.
            padding_side: overrides the tokenizer's own.

        Returns:
            One array `(units, labels)` per input.
        """
        batch = padded(encodings, self.tokenizer, self.engine, padding_side)
        logits = self.engine.run(batch)[: len(encodings)]
        width = batch["input_ids"].shape[1]
        scores = []
        for row, text, encoding in zip(logits, texts, encodings, strict=True):
            unpadded = row[self.tokenizer.place(len(encoding), width, padding_side)] if row.ndim == 2 else row
            scores.append(self.task.scores(unpadded, text, encoding))
        return scores

    def warm(self, batch_tokens: int, seconds: float) -> int:
        """Runs batches of the shapes that the engine compiles on first use, small ones first.

        Args:
            batch_tokens: the most padded tokens of one batch.
            seconds: after which no further batch is started.

        Returns:
            The number of shapes; 0 if the engine compiles none.
        """
        if self.engine.shape(1, 1) == (1, 1):
            return 0
        lengths = range(1, self.tokenizer.max_tokens + 1)
        shapes = {self.engine.shape(rows, tokens) for tokens in lengths for rows in WARM_UP_ROWS}
        end, compiled = time.monotonic() + seconds, 0
        for rows, tokens in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
            if rows * tokens > batch_tokens or time.monotonic() > end:
                break
            self.engine.run(self.tokenizer.collate(self.tokenizer.encode([""] * rows), tokens=tokens))
            compiled += 1
        return compiled

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
            pairs: the second texts, for a model that reads pairs.
            batch_tokens: the most padded tokens of one batch, default as the engine runs best; a longer input runs
                alone.
            track: wraps the batches, for a progress bar.

        Returns:
            One array `(units, labels)` per input, in the order of the inputs.
        """
        encodings = self.tokenizer.encode(texts, pairs)
        budget = batch_tokens or self.engine.execution.batch_tokens
        work = batches([len(encoding) for encoding in encodings], budget, self.engine.shape)

        def run(rows: list[int]) -> list[Float32]:
            return self.scores([texts[index] for index in rows], [encodings[index] for index in rows])

        scores: dict[int, Float32] = {}
        parallel = self.engine.execution.streams > 1 and len(work) > 1
        results = self._threads.map(run, work) if parallel else map(run, work)
        for rows, batch_scores in zip(track(work), results, strict=True):
            scores.update(zip(rows, batch_scores, strict=True))
        return [scores[index] for index in range(len(texts))]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """One thread for each stream of the engine, kept for the next call."""
        return ThreadPoolExecutor(self.engine.execution.streams, thread_name_prefix="predictor")


def _check_labels(artifact: Artifact) -> None:
    """Compares the labels with those of the model's configuration: their order is that of its outputs."""
    file, labels = artifact.file(CONFIG), list(artifact.manifest.labels)
    names = json.loads(file.read_text(encoding="utf-8")).get("id2label", {}) if file.is_file() else {}
    configured = [names[index] for index in sorted(names, key=int)]
    if configured and configured != labels:
        raise ArtifactError(
            f"{file} gives the outputs the labels {configured}, the manifest {labels}: one of the two belongs to"
            " another model. Build the artifact again."
        )


def padded(
    encodings: Sequence[Encoding], tokenizer: Tokenizer, engine: engines.Engine, padding_side: Side | None = None
) -> Batch:
    """Pads encodings to a shape that the engine runs well; added rows repeat the first encoding."""
    rows, tokens = engine.shape(len(encodings), max(map(len, encodings)))
    return tokenizer.collate([*encodings, *[encodings[0]] * (rows - len(encodings))], padding_side, tokens)


def batches(
    lengths: Sequence[int], batch_tokens: int, shape: Callable[[int, int], tuple[int, int]] | None = None
) -> list[list[int]]:
    """Splits inputs into batches of similar lengths, short ones first.

    Args:
        lengths: in tokens.
        batch_tokens: the most padded tokens of one batch; a longer input runs alone.
        shape: returns the shape to which the engine pads a batch; default: no padding. Batches are filled from the
            longest input on, so that padded rows are added to batches of short inputs.

    Returns:
        The indices of each batch.
    """
    shape, order = shape or (lambda *exact: exact), sorted(range(len(lengths)), key=lengths.__getitem__)
    split = []
    while order:
        longest, rows = lengths[order[-1]], 1
        while (
            rows < len(order)
            and math.prod(shape(rows + 1, longest)) <= batch_tokens
            and MAX_LENGTH_RATIO * lengths[order[-rows - 1]] >= longest
        ):
            rows += 1
        split.append(order[-rows:])
        del order[-rows:]
    return split[::-1]
