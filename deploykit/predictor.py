"""From texts to scores: a tokenizer, a task and an engine put together.

Evaluation, the golden set and the service all predict through this object, on any engine. It knows
nothing of metrics, queues or requests.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from deploykit import engines, tasks
from deploykit.artifact import GRAPH, Artifact
from deploykit.tasks import Float32, Task
from deploykit.tokenizer import Encoding, Side, Tokenizer

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Predictor:
    """Everything that a prediction needs."""

    task: Task
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    engine: engines.Engine

    @classmethod
    def load(cls, artifact: Artifact, threads: int, engine: str | None = None) -> "Predictor":
        """Opens an artifact.

        Args:
            artifact: of any kind.
            threads: for the engine.
            engine: a name of the folder `engines`; default: the one that the manifest names.
        """
        manifest = artifact.manifest
        module = engines.load(engine or manifest.engine)
        model = artifact.file(GRAPH) if module.KIND == "onnx" else artifact.path
        return cls(
            task=tasks.load(manifest.task),
            labels=manifest.labels,
            tokenizer=Tokenizer.load(artifact.path, manifest.max_tokens),
            engine=module.load(model, threads),
        )

    def scores(
        self,
        texts: Sequence[str],
        encodings: Sequence[Encoding],
        padding_side: Side | None = None,
    ) -> list[Float32]:
        """Runs one batch as it comes.

        Args:
            texts: the first text of each input.
            encodings: what `tokenizer.encode` made of them.
            padding_side: overrides the tokenizer's own.

        Returns:
            One array `(units, labels)` an input.
        """
        batch = self.tokenizer.collate(encodings, padding_side)
        logits = self.engine.run(batch)
        width = batch["input_ids"].shape[1]
        found = []
        for row, text, encoding in zip(logits, texts, encodings, strict=True):
            real = row[self.tokenizer.place(len(encoding), width, padding_side)] if row.ndim == 2 else row
            found.append(self.task.scores(real, text, encoding))
        return found

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        batch_tokens: int = BATCH_TOKENS,
        track: Callable[[list[list[int]]], Iterable[list[int]]] = iter,
    ) -> list[Float32]:
        """Scores any number of inputs, sorted by length and cut into batches of few padding tokens.

        Args:
            texts: the first text of each input.
            pairs: the second texts, where the model takes pairs.
            batch_tokens: the most padded tokens of one batch; a longer input runs alone.
            track: wraps the batches, for a progress bar.

        Returns:
            One array `(units, labels)` an input, in the order given.
        """
        encodings = self.tokenizer.encode(texts, pairs)
        found: dict[int, Float32] = {}
        for rows in track(list(batches([len(encoding) for encoding in encodings], batch_tokens))):
            found.update(zip(rows, self.scores([texts[i] for i in rows], [encodings[i] for i in rows]), strict=True))
        return [found[index] for index in range(len(texts))]


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yields indices, short inputs first, so that no padded batch exceeds `batch_tokens`."""
    rows: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if rows and (len(rows) + 1) * lengths[index] > batch_tokens:
            yield rows
            rows = []
        rows.append(index)
    if rows:
        yield rows
