"""Turns inputs into predictions, with a tokenizer, an engine and a task.

Evaluation, the golden set and the service all predict through `Predictor`, on any engine.
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

WARM_UP_ROWS = range(1, 65)  # numbers of rows of the batches that `warm` runs
MAX_LENGTH_RATIO = 2  # length of the longest text in a batch divided by that of the shortest


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
            cores: number of cores for the engine, if there is no `execution`.
            execution: how to run the model; default: as the manifest says, on `cores`.
            graph: name of the file to open, if the artifact holds graphs.

        Raises:
            ArtifactError: the model's configuration has other labels than the manifest.
        """
        manifest = artifact.manifest
        _check_labels(artifact)
        execution = execution or manifest.execution.with_cores(cores)
        module = engines.load(execution.engine)
        model = artifact.file(graph) if module.KIND == "onnx" else artifact.path
        return cls(
            task=tasks.task_of(manifest),
            spec=tasks.spec_of(manifest),
            tokenizer=load_tokenizer(artifact.path, manifest.max_tokens),
            engine=module.load(model, execution),
        )

    @property
    def max_characters(self) -> int:
        """The number of characters of a text that can be read; the rest is cut off before tokenization."""
        windows: int = getattr(self.spec.options, "max_windows", 1)
        return windows * self.tokenizer.max_tokens * MAX_CHARACTERS_PER_TOKEN

    def encode(self, inputs: Sequence[Any]) -> list[list[Features]]:
        """Returns the features that the model reads of each input: several for a long text, one per window."""
        return self.task.encode(inputs, self.tokenizer, self.spec)

    def run(self, features: Sequence[Features], padding_side: Side | None = None) -> list[Arrays]:
        """Runs one batch, padded to a shape that the engine runs well.

        Args:
            features: of the rows, at least one.
            padding_side: overrides the tokenizer's own.

        Returns:
            For each row the outputs that the task reads, by name, without padding.
        """
        batch = pad_for_engine(features, self.tokenizer, self.engine, padding_side)
        outputs = self.engine.run(batch)
        token_axes = {name: axes.count("tokens") for name, axes in self.task.OUTPUTS.items()}  # they come first
        width = batch["input_ids"].shape[1] if any(token_axes.values()) else 0
        rows = list[Arrays]()
        for index, item in enumerate(features):
            tokens = self.tokenizer.token_slice(len(item), width, padding_side)
            rows.append({name: outputs[name][index][(tokens,) * count] for name, count in token_axes.items()})
        return rows

    def decode(self, outputs: Sequence[Arrays], features: Sequence[Features], item: Any) -> Prediction:
        """Returns the prediction for one input, from the outputs for all of its features."""
        return self.task.decode(outputs, features, item, self.spec)

    def warm(self, batch_tokens: int, seconds: float) -> int:
        """Runs batches of the shapes that the engine compiles on first use, small ones first.

        Args:
            batch_tokens: the most padded tokens of a batch; larger batches are not run.
            seconds: after this time, no further batch is started.

        Returns:
            The number of shapes that were run; 0 if the engine compiles none.
        """
        if self.engine.shape(1, 1) == (1, 1):  # it runs any shape as it is
            return 0
        blank = self.tokenizer.blank_features()
        lengths = range(len(blank), self.tokenizer.max_tokens + 1)
        shapes = {self.engine.shape(rows, tokens) for tokens in lengths for rows in WARM_UP_ROWS}
        deadline, compiled = time.monotonic() + seconds, 0
        for rows, tokens in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
            if rows * tokens > batch_tokens or time.monotonic() > deadline:
                break
            encodings = self.tokenizer.collate([blank.encoding] * rows, tokens=tokens)
            self.engine.run(_with_arrays([blank] * rows, encodings))
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
            batch_tokens: the most padded tokens of one batch; a longer input runs alone. Default: the execution's.
            track: wraps the list of batches, to show progress.

        Returns:
            One prediction per input, in the order of the inputs. `answers` returns what a client would get.
        """
        items = self._to_items(inputs)
        encoded = self.encode(items)
        features = [window for windows in encoded for window in windows]  # of all inputs, one entry per window
        owners = [(item, window) for item, windows in enumerate(encoded) for window in range(len(windows))]
        max_tokens = batch_tokens or self.engine.execution.batch_tokens
        batches = group_by_length([len(window) for window in features], max_tokens, self.engine.shape)

        def run(batch: list[int]) -> list[Arrays]:
            return self.run([features[index] for index in batch])

        outputs = [dict[int, Arrays]() for _ in items]  # of each input, by number of the window
        predictions: list[Prediction] = [None] * len(items)
        runs_in_parallel = self.engine.execution.streams > 1 and len(batches) > 1
        results = self._threads.map(run, batches) if runs_in_parallel else map(run, batches)
        for batch, batch_outputs in zip(track(batches), results, strict=True):
            for index, arrays in zip(batch, batch_outputs, strict=True):
                item, window = owners[index]
                outputs[item][window] = arrays
                # Decodes an input as soon as its last window was run, because outputs may be large.
                if len(outputs[item]) == len(encoded[item]):
                    in_order = [outputs[item].pop(number) for number in range(len(encoded[item]))]
                    predictions[item] = self.decode(in_order, encoded[item], items[item])
        return predictions

    def answers(self, inputs: Sequence[Any]) -> list[BaseModel]:
        """Returns what a client of the service would get for these inputs; see `predict`."""
        items = self._to_items(inputs)
        return [
            self.task.answer(prediction, features, item, self.spec)
            for prediction, features, item in zip(self.predict(items), self.encode(items), items, strict=True)
        ]

    def _to_items(self, inputs: Sequence[Any]) -> list[Any]:
        """Returns inputs as objects of the task's type `Input`; see `predict` for what an input may be."""

        def convert(item: Any) -> Any:
            return self.task.Input.model_validate({"text": item} if isinstance(item, str) else item)

        return [item if isinstance(item, Input) else convert(item) for item in inputs]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """A pool with a thread for each stream of the engine, kept for the next call."""
        return ThreadPoolExecutor(self.engine.execution.streams, thread_name_prefix="predictor")


def _check_labels(artifact: Artifact) -> None:
    """Raises an ArtifactError if manifest and configuration name other labels, or in another order."""
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
    """Pads features to one batch, of a shape that the engine runs well; added rows repeat the first features."""
    rows, tokens = engine.shape(len(features), max(map(len, features)))
    items = [*features, *[features[0]] * (rows - len(features))]
    return _with_arrays(items, tokenizer.collate([item.encoding for item in items], padding_side, tokens))


def pad_in_batches(features: Sequence[Features], tokenizer: AnyTokenizer, rows: int) -> list[Batch]:
    """Pads features in batches of `rows` rows each, in their order."""
    groups = (features[start : start + rows] for start in range(0, len(features), rows))
    return [_with_arrays(group, tokenizer.collate([item.encoding for item in group])) for group in groups]


def _with_arrays(features: Sequence[Features], batch: Batch) -> Batch:
    """Adds the arrays that features have besides their tokens, such as pixels, to the batch of their padded tokens."""
    return batch | {name: np.stack([item.arrays[name] for item in features]) for name in features[0].arrays}


def group_by_length(
    lengths: Sequence[int], batch_tokens: int, shape: Callable[[int, int], tuple[int, int]] | None = None
) -> list[list[int]]:
    """Groups inputs of similar lengths into batches.

    Args:
        lengths: of the inputs, in tokens.
        batch_tokens: the most padded tokens of one batch; a longer input is a batch of its own.
        shape: returns the rows and tokens to which the engine pads a batch; default: the same.

    Returns:
        The indices of the inputs of each batch, batches of short inputs first.
    """
    pad_shape = shape or (lambda rows, tokens: (rows, tokens))
    remaining = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = []
    # Batches are filled from the longest input on, so that the last one, which may be padded with rows, has short ones.
    while remaining:
        longest, rows = lengths[remaining[-1]], 1
        while (
            rows < len(remaining)
            and math.prod(pad_shape(rows + 1, longest)) <= batch_tokens
            and MAX_LENGTH_RATIO * lengths[remaining[-rows - 1]] >= longest
        ):
            rows += 1
        groups.append(remaining[-rows:])
        del remaining[-rows:]
    return groups[::-1]
