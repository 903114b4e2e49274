"""From inputs to predictions: a tokenizer, a task and an engine.

Evaluation, the golden set and the service all predict through this object, on any engine.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import BaseModel

from deploykit import engines, tasks
from deploykit.artifact import CONFIG, GRAPH, Artifact
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError
from deploykit.images import AnyTokenizer, load_tokenizer
from deploykit.tasks import Arrays, Input, Prediction, Spec, Task
from deploykit.tokenizer import MAX_CHARACTERS_PER_TOKEN, Batch, Features, Side

WARM_UP_ROWS = range(1, 65)  # of batches that are compiled ahead
MAX_LENGTH_RATIO = 2  # longest to shortest text in one batch


@dataclass(frozen=True)
class Predictor:
    """Everything that a prediction needs."""

    task: Task
    spec: Spec
    tokenizer: AnyTokenizer
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
            task=tasks.of_manifest(manifest),
            spec=tasks.spec_of(manifest),
            tokenizer=load_tokenizer(artifact.path, manifest.max_tokens),
            engine=module.load(model, execution),
        )

    @property
    def max_characters(self) -> int:
        """The most characters of a text that are read; the rest is cut off."""
        windows: int = getattr(self.spec.options, "max_windows", 1)
        return windows * self.tokenizer.max_tokens * MAX_CHARACTERS_PER_TOKEN

    def encode(self, inputs: Sequence[Any]) -> list[list[Features]]:
        """Returns what the model reads of each input: for a long text, several windows."""
        return self.task.encode(inputs, self.tokenizer, self.spec)

    def run(self, features: Sequence[Features], padding_side: Side | None = None) -> list[Arrays]:
        """Runs one batch, padded to a shape that the engine runs well.

        Args:
            features: at least one.
            padding_side: overrides the tokenizer's own.

        Returns:
            For each of the features the outputs that the task reads, without padding.
        """
        batch = pad_for_engine(features, self.tokenizer, self.engine, padding_side)
        outputs = self.engine.run(batch)
        token_axes = {name: axes.count("tokens") for name, axes in self.task.OUTPUTS.items()}
        width = batch["input_ids"].shape[1] if any(token_axes.values()) else 0
        rows = list[Arrays]()
        for index, item in enumerate(features):
            place = self.tokenizer.place(len(item), width, padding_side)
            rows.append({name: outputs[name][index][(place,) * count] for name, count in token_axes.items()})
        return rows

    def decode(self, outputs: Sequence[Arrays], features: Sequence[Features], item: Any) -> Prediction:
        """Returns the prediction for an input, from the outputs for all of its features."""
        return self.task.decode(outputs, features, item, self.spec)

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
        blank = self.tokenizer.blank()
        lengths = range(len(blank), self.tokenizer.max_tokens + 1)
        shapes = {self.engine.shape(rows, tokens) for tokens in lengths for rows in WARM_UP_ROWS}
        end, compiled = time.monotonic() + seconds, 0
        for rows, tokens in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
            if rows * tokens > batch_tokens or time.monotonic() > end:
                break
            self.engine.run(_stacked([blank] * rows, self.tokenizer.collate([blank.encoding] * rows, tokens=tokens)))
            compiled += 1
        return compiled

    def predict(
        self,
        inputs: Sequence[Any],
        batch_tokens: int | None = None,
        track: Callable[[list[list[int]]], Iterable[list[int]]] = iter,
    ) -> list[Prediction]:
        """Predicts for any number of inputs, sorted by length and cut into batches of few padding tokens.

        Args:
            inputs: of the task's type `Input`; a text stands for `Input(text=text)`, the path of an image for its file.
            batch_tokens: the most padded tokens of one batch, default as the engine runs best; a longer input runs
                alone.
            track: wraps the batches, for a progress bar.

        Returns:
            One prediction per input, in the order of the inputs; `answer` shows what a client would get.
        """
        items = self._items(inputs)
        encoded = self.encode(items)
        features = [part for parts in encoded for part in parts]
        budget = batch_tokens or self.engine.execution.batch_tokens
        work = group_by_length([len(part) for part in features], budget, self.engine.shape)

        def run(rows: list[int]) -> list[Arrays]:
            return self.run([features[index] for index in rows])

        of_input = [(index, part) for index, parts in enumerate(encoded) for part in range(len(parts))]
        outputs = [dict[int, Arrays]() for _ in items]  # of each input, those of its parts that were run
        predictions: list[Prediction] = [None] * len(items)
        parallel = self.engine.execution.streams > 1 and len(work) > 1
        results = self._threads.map(run, work) if parallel else map(run, work)
        for rows, batch_outputs in zip(track(work), results, strict=True):
            for row, arrays in zip(rows, batch_outputs, strict=True):
                index, part = of_input[row]
                outputs[index][part] = arrays
                if len(outputs[index]) == len(encoded[index]):  # at once, because outputs may be large
                    whole = [outputs[index].pop(number) for number in range(len(encoded[index]))]
                    predictions[index] = self.decode(whole, encoded[index], items[index])
        return predictions

    def answers(self, inputs: Sequence[Any]) -> list[BaseModel]:
        """Returns what a client of the service would get for these inputs; see `predict`."""
        items = self._items(inputs)
        return [
            self.task.answer(prediction, parts, item, self.spec)
            for prediction, parts, item in zip(self.predict(items), self.encode(items), items, strict=True)
        ]

    def _items(self, inputs: Sequence[Any]) -> list[Any]:
        def read(item: Any) -> Any:
            return self.task.Input.model_validate({"text": item} if isinstance(item, str) else item)

        return [item if isinstance(item, Input) else read(item) for item in inputs]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """One thread for each stream of the engine, kept for the next call."""
        return ThreadPoolExecutor(self.engine.execution.streams, thread_name_prefix="predictor")


def _check_labels(artifact: Artifact) -> None:
    """Compares the labels with those of the model's configuration: their order is that of its outputs."""
    file, labels = artifact.file(CONFIG), list(artifact.manifest.labels)
    names = json.loads(file.read_text(encoding="utf-8")).get("id2label", {}) if file.is_file() else {}
    configured = [names[index] for index in sorted(names, key=int)]
    if labels and configured and configured != labels:
        raise ArtifactError(
            f"{file} gives the outputs the labels {configured}, the manifest {labels}: one of the two belongs to"
            " another model. Build the artifact again."
        )


def pad_for_engine(
    features: Sequence[Features], tokenizer: AnyTokenizer, engine: engines.Engine, padding_side: Side | None = None
) -> Batch:
    """Pads features to a shape that the engine runs well; added rows repeat the first features."""
    rows, tokens = engine.shape(len(features), max(map(len, features)))
    items = [*features, *[features[0]] * (rows - len(features))]
    return _stacked(items, tokenizer.collate([item.encoding for item in items], padding_side, tokens))


def pad_in_batches(features: Sequence[Features], tokenizer: AnyTokenizer, rows: int) -> list[Batch]:
    """Pads features in batches of `rows`, in their order."""
    parts = (features[start : start + rows] for start in range(0, len(features), rows))
    return [_stacked(part, tokenizer.collate([item.encoding for item in part])) for part in parts]


def _stacked(features: Sequence[Features], batch: Batch) -> Batch:
    """Adds the further arrays of features to their padded tokens."""
    return batch | {name: np.stack([item.arrays[name] for item in features]) for name in features[0].arrays}


def group_by_length(
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
