"""Packages of every task whose graph is a table of weights, to serve without a trained model."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rows import inputs_of

from deploykit import tasks
from deploykit.artifact import GRAPH
from deploykit.tasks import multi_task as MultiTask  # noqa: N812
from deploykit.tasks.question_answering import Input as Question
from deploykit.tasks.relation_extraction import Input as Related

TOLERANCE = 1e-4  # of a probability: batches of other shapes round differently
BETWEEN_BATCHES = 0.03  # of a probability, with int8: it scales the activations of a batch together
PADDING = 0  # id of the token, which counts nothing
TEXTS = ["a great film", "the plot is weak"]
CONTEXT = "anna lives in london ."


def write_graph(file, outputs, labels, weight_of=None):
    """Writes a graph whose outputs are sums, over a text, of each token or of each pair, of rows of weights.

    Args:
        file: of the graph.
        outputs: the axes of each output, as the task declares them.
        labels: the number of each output's labels.
        weight_of: columns of the weights `(tokens, columns)` by output, instead of random ones.
    """
    nodes, constants, infos = [], [], []
    for seed, (name, axes) in enumerate(outputs.items()):
        columns = labels[name] if axes[-1] == "labels" else 1
        weights = np.random.default_rng(seed + 5).normal(size=(200, columns)).astype(np.float32)
        weights = (weight_of or {}).get(name, weights)
        weights[PADDING] = 0
        constants += [numpy_helper.from_array(weights, f"{name}.weights")]
        nodes.append(helper.make_node("Gather", [f"{name}.weights", "input_ids"], [f"{name}.rows"]))
        if axes == ("tokens",):
            nodes.append(helper.make_node("Squeeze", [f"{name}.rows", "last"], [name]))
        elif axes == ("tokens", "labels"):
            nodes.append(helper.make_node("Identity", [f"{name}.rows"], [name]))
        elif axes == ("tokens", "tokens", "labels"):
            sides = [f"{name}.first", f"{name}.second"]
            nodes.append(helper.make_node("Unsqueeze", [f"{name}.rows", "two"], [sides[0]]))
            nodes.append(helper.make_node("Unsqueeze", [f"{name}.rows", "tokens"], [sides[1]]))
            nodes.append(helper.make_node("Sub", sides, [name]))
        else:
            nodes.append(helper.make_node("ReduceSum", [f"{name}.rows", "tokens"], [name], keepdims=0))
        shape = ["batch", *(columns if axis == "labels" else axis for axis in axes)]
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    numbers = {"last": -1, "tokens": 1, "two": 2}
    constants += [numpy_helper.from_array(np.array([number]), name) for name, number in numbers.items()]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    built = helper.make_graph(nodes, "tiny", [ids], infos, constants)
    onnx.save(helper.make_model(built, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)


@dataclass(frozen=True)
class Case:
    """Inputs of a task, and the labels and options of a model for it."""

    inputs: list[Any]
    labels: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


TAGS = ("O", "B-PERSON", "I-PERSON", "B-PLACE", "I-PLACE")
HEADS = {
    "intent": {"method": "text-classification", "labels": ["play", "stop"]},
    "slots": {"method": "token-classification", "labels": ["O", "B-A", "I-A"]},
}
GIVEN = [{"start": 0, "end": 4, "label": "PERSON"}, {"start": 14, "end": 20, "label": "PLACE"}]
CASES = {
    "text-classification": Case(inputs_of(TEXTS), ("negative", "positive")),
    "multi-label-classification": Case(inputs_of(TEXTS), ("joy", "fear"), {"thresholds": {"joy": 0.3, "fear": 0.3}}),
    "regression": Case(inputs_of(TEXTS), (), {"mean": 3.0, "deviation": 2.0}),
    "token-classification": Case(inputs_of([CONTEXT, TEXTS[1]]), TAGS),
    "question-answering": Case(
        [Question(question="where is anna ?", context=CONTEXT), Question(question="who ?", context=CONTEXT * 9)],
        (),
        {"stride": 16, "no_answer_threshold": 0.0},
    ),
    "relation-extraction": Case(
        [Related(text="anna lives in london"), Related(text=CONTEXT, entities=GIVEN)],
        TAGS,
        {"relations": ["of", "in"]},
    ),
    "multi-task": Case(
        [MultiTask.Input(text=TEXTS[0]), MultiTask.Input(text=TEXTS[1], heads=["intent"])], (), {"heads": HEADS}
    ),
}


NAMES = {"anna": [0, 8, 0, 0, 0], "london": [0, 0, 0, 8, 0]}
LIKED = {"great": [-1.5, 1.5], "weak": [1.5, -1.5]}
MEANINGS = {  # by task and output: what some words say, and what all others say
    "text-classification": {"logits": (LIKED, [0, 0])},
    "multi-label-classification": {"logits": ({"great": [6, 3], "weak": [0, 2]}, [-0.3, -0.3])},
    "regression": {"logits": ({"great": [1.5], "weak": [-1.5]}, [0.05])},
    "token-classification": {"logits": (NAMES, [4, 0, 0, 0, 0])},
    "question-answering": dict.fromkeys(("start_logits", "end_logits"), ({"london": [9], "[CLS]": [1]}, [0])),
    "relation-extraction": {
        "tag_logits": (NAMES, [4, 0, 0, 0, 0]),
        "relation_logits": ({"anna": [0, 0, 3], "london": [0, 0, -3]}, [0, 0, 0]),
    },
    "multi-task": {
        "intent/logits": (LIKED, [0, 0]),
        "slots/logits": ({"great": [0, 8, 0], "film": [0, 0, 8]}, [4, 0, 0]),
    },
}


def weights_of(name, tokenizer):
    """Weights with which the answers of a task are known: `MEANINGS`, for the tokens of this tokenizer."""
    tables = {}
    for output, (words, others) in MEANINGS[name].items():
        tables[output] = np.tile(np.float32(others), (200, 1))
        for word, row in words.items():
            tables[output][tokenizer.backend.token_to_id(word)] = row
    return tables


def options_of(name, **changes):
    """The options of a task's case with these changes."""
    return tasks.load(name).Options.model_validate(CASES[name].options | changes)


def task_of(name):
    """The task of a case."""
    return tasks.load(name, options_of(name))


def body_of(task, inputs):
    """The body of a request to `/v1/predict`."""
    if task.Input is tasks.TextInput:
        return {"texts": [item.text for item in inputs]}
    return {"inputs": [item.model_dump() for item in inputs]}


def write_package(make_package, target, name, questions=None, weight_of=None, changes=None, **options):
    """Writes the package of a task's case.

    Args:
        make_package: the fixture.
        target: its directory.
        name: of the task.
        questions: of the golden set; default: the inputs of the case.
        weight_of: see `write_graph`.
        changes: in the manifest.
        options: of the task, besides those of the case.
    """
    case, task = CASES[name], task_of(name)
    spec = tasks.Spec(case.labels, options_of(name, **options))
    columns = dict.fromkeys(task.OUTPUTS, max(len(case.labels), 1))
    if hasattr(task, "output_labels"):
        columns = {output: len(names) for output, names in task.output_labels(spec).items()}
    return make_package(
        target,
        before=lambda folder: write_graph(folder / GRAPH, task.OUTPUTS, columns, weight_of),
        questions=questions or case.inputs,
        task=name,
        labels=case.labels,
        task_options=case.options | options,
        **(changes or {}),
    )


def close(first, second, tolerance=TOLERANCE):
    """Says whether two contents of JSON are the same, but for numbers that differ by no more than the tolerance."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(close(first[key], second[key], tolerance) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(close(*pair, tolerance) for pair in zip(first, second, strict=True))
    if isinstance(first, float):
        return abs(first - second) <= tolerance
    return type(first) is type(second) and first == second
