from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rows import example_of

from deploykit.artifact.execution import Execution
from deploykit.engines import onnxruntime as engine
from deploykit.errors import GateError
from deploykit.evaluation import parity
from deploykit.inference.predictor import Predictor

BATCHES = {
    "batch 1",
    "batch 3, right padding",
    "batch 3, left padding",
    "batch 8, right padding",
    "batch 8, left padding",
    "64 tokens",
}
LABELS = {"text-classification": ("negative", "positive"), "token-classification": ("O", "B-NAME", "I-NAME")}


@pytest.fixture(params=LABELS)
def artifact(request, tmp_path, tiny_artifact):
    return tiny_artifact(tmp_path / "export", task=request.param, labels=LABELS[request.param])


@pytest.fixture
def reference(artifact):
    return Predictor.load(artifact, cores=1)


@pytest.fixture
def rows(sentences):
    return [example_of(text) for text, _ in sentences]


def planted(artifact, change):
    """Opens the artifact's graph with changed weights."""
    model = onnx.load(artifact.file("model.onnx"))
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weights).copy()), "weights"))
    file = artifact.path.parent / "planted.onnx"
    onnx.save(model, file)
    return engine.load(file, Execution())


class OnlyPadded:
    """An engine whose logits are wrong for rows that are padded on one side."""

    name, threads = "onnxruntime", 1

    def __init__(self, whole, column, amount):
        self.whole, self.column, self.amount = whole, column, amount

    def run(self, batch):
        logits = self.whole.run(batch)["logits"].copy()
        logits[batch["attention_mask"][:, self.column] == 0] += self.amount
        return {"logits": logits}

    def shape(self, rows, tokens):
        return rows, tokens


def test_a_scaled_weight_is_noticed_in_every_batch(artifact, reference, rows):
    differences = parity.difference(reference, planted(artifact, lambda weights: weights * 1.01), rows)
    assert set(differences) == BATCHES
    assert min(differences.values()) > 1e-3


def test_one_changed_token_is_noticed_by_as_much_as_it_changed(artifact, reference, rows):
    token = reference.tokenizer.backend.token_to_id("the")

    def change(weights):
        weights[token] += 0.5
        return weights

    differences = parity.difference(reference, planted(artifact, change), [example_of("the film")])
    assert differences.pop("64 tokens") > 0.49
    assert list(differences.values()) == pytest.approx([0.5] * len(differences), rel=1e-4)


@pytest.mark.parametrize("amount", [1.0, float("nan")])
@pytest.mark.parametrize(("side", "column"), [("left", 0), ("right", -1)])
def test_a_graph_that_is_wrong_on_one_padding_is_noticed_there(reference, rows, side, column, amount):
    differences = parity.difference(reference, OnlyPadded(reference.engine, column, amount), rows)
    wrong = {name for name, value in differences.items() if not value < 1e-3}
    assert wrong == {name for name in BATCHES if f"{side} padding" in name}


def test_nan_logits_are_an_infinite_difference(artifact, reference, rows):
    differences = parity.difference(reference, planted(artifact, lambda weights: weights * np.nan), rows)
    assert differences == dict.fromkeys(BATCHES, float("inf"))


def test_a_graph_equals_itself(reference, rows):
    again = replace(reference).engine
    assert parity.difference(reference, again, rows) == dict.fromkeys(BATCHES, 0.0)


def test_probes_range_from_the_shortest_text_to_the_longest_input(reference, rows):
    names, batches = zip(*parity.make_batches(rows, reference), strict=True)
    lengths = sorted(len(part) for parts in reference.encode([row.input for row in rows]) for part in parts)
    assert [len(batch) for batch in batches] == [1, 1, 1, 1, 1, 3, 8, 1]
    assert (len(batches[0][0]), len(batches[4][0])) == (lengths[0], lengths[-1])
    assert len({len(features) for features in batches[-2]}) == 4
    ((longest,),), first = batches[-1:], batches[0][0].encoding
    assert (names[-1], len(longest)) == ("64 tokens", 64)
    assert (longest.encoding.ids[0], longest.encoding.ids[-1]) == (first.ids[0], first.ids[-1])  # special tokens
    assert set(longest.encoding.ids[1:-1]) == set(first.ids[1:-1])


def test_pairs_are_probed_at_length_as_pairs(reference):
    *_, (_, (longest,)) = parity.make_batches([example_of("a film", "the end")], reference)
    assert (len(longest), set(longest.encoding.type_ids)) == (64, {0, 1})


def test_a_graph_that_does_not_run_is_refused_with_the_batch_on_which_it_failed(reference, rows):
    class Short:
        name, threads = "onnxruntime", 1

        def run(self, batch):
            if batch["input_ids"].shape[1] > 63:
                raise RuntimeError("indices element out of data bounds")
            return reference.engine.run(batch)

        def shape(self, rows, tokens):
            return rows, tokens

    with pytest.raises(GateError, match=r"fails on 64 tokens: indices element out of data bounds\. Try another export"):
        parity.difference(reference, Short(), rows)


def test_one_text_is_enough(reference):
    assert parity.difference(reference, reference.engine, [example_of("a film")])
