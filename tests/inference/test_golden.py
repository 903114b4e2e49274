import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from rows import inputs_of, spec_of

from deploykit import tasks
from deploykit.artifact import FLOAT_GRAPH, GRAPH
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError
from deploykit.inference import golden
from deploykit.inference.golden import Golden
from deploykit.inference.predictor import Predictor

TEXT = tasks.load("text-classification")
TEXTS = ["the film is great", "the plot was awful", "a fine cast !"]


@pytest.fixture
def found(tmp_path, tiny_artifact):
    return tiny_artifact(tmp_path / "package")


@pytest.fixture
def predictor(found):
    return Predictor.load(found, cores=1)


@pytest.fixture
def answers(predictor):
    inputs = inputs_of(TEXTS)
    predictions = golden.to_stored(TEXT.dump(predictor.predict(inputs)))
    return Golden(inputs=[item.model_dump() for item in inputs], predictions=predictions, reference=predictions)


def shifted(answers, index, amount):
    predictions = [row.copy() for row in golden.from_stored(answers.predictions, TEXT)]
    predictions[index][0][0] += amount
    return answers.model_copy(update={"predictions": golden.to_stored(TEXT.dump(predictions))})


def test_an_artifact_without_a_golden_set_is_refused(found):
    with pytest.raises(ArtifactError, match=r"package/golden\.json cannot be read \(.*\)\. Package the model again\."):
        golden.load(found)


EARLIER = {"texts": ["a"], "pairs": [None], "scores": [[[0.0, 1.0]]], "reference": [[[0.0, 1.0]]]}
STORED = {"shape": [1, 2], "dtype": "<f4", "data": [0.0, 1.0]}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        "[]",
        *(json.dumps({**EARLIER, **change}) for change in ({"more": 1}, {"pairs": []}, {"scores": [[["a", "b"]]]})),
        *(json.dumps({**EARLIER, name: None}) for name in ("pairs", "scores", "reference")),
        *(json.dumps({key: value for key, value in EARLIER.items() if key != name}) for name in EARLIER),
        json.dumps({"inputs": [{}], "predictions": {"scores": STORED}, "reference": {}, "more": 1}),
        json.dumps({"inputs": [{}], "predictions": {"scores": {**STORED, "data": ["a"]}}, "reference": {}}),
    ],
)
def test_a_damaged_golden_set_is_refused(found, content):
    found.file("golden.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"golden\.json cannot be read"):
        golden.load(found)


def test_answers_that_moved_are_counted_and_the_first_is_shown(answers, predictor):
    moved = shifted(shifted(answers, 1, 3.0), 2, 8.0)
    message = (
        r"^2 of 3 golden answers moved: a probability shifted by up to 0\.\d{3}, expected at most 0\.02\."
        r" The first is number 1 of the set\. This machine computes the model differently, or a file is not the one"
    )
    with pytest.raises(ArtifactError, match=message):
        golden.replay(moved, predictor)


def test_answers_that_are_not_numbers_moved(answers, predictor):
    with pytest.raises(ArtifactError, match=r"^1 of 3 golden answers moved"):
        golden.replay(shifted(answers, 0, float("nan")), predictor)


def test_answers_of_another_shape_moved(answers, predictor):
    predictions = [np.zeros((1, 3), dtype=np.float32)] * 3
    other = answers.model_copy(update={"predictions": golden.to_stored(TEXT.dump(predictions))})
    with pytest.raises(ArtifactError, match=r"^3 of 3 golden answers moved: a probability shifted by up to inf"):
        golden.replay(other, predictor)


def test_the_float_graphs_answers_are_needed_and_may_hardly_move(answers, predictor):
    with pytest.raises(ArtifactError, match=r"holds no answers of the float graph\. Package the model again\."):
        golden.replay(answers, predictor, "float_predictions")
    moved = shifted(answers, 1, 0.01)  # enough for the chosen graph
    with pytest.raises(ArtifactError, match=r"^1 of 3 golden answers moved: .* expected at most 0\.001\."):
        golden.replay(
            answers.model_copy(update={"float_predictions": moved.predictions}), predictor, "float_predictions"
        )
    golden.replay(moved.model_copy(update={"float_predictions": answers.predictions}), predictor, "float_predictions")


@pytest.mark.parametrize("seed", [7, 8])
def test_verify_asks_the_float_graph_where_the_choice_cannot_run(
    tmp_path, tiny_artifact, tiny_graph, answers, seed, caplog
):
    other = tiny_artifact(tmp_path / "other", lambda folder: tiny_graph(folder / GRAPH, seed=7))
    exact = golden.to_stored(TEXT.dump(Predictor.load(other, 1).predict(TEXTS)))

    def fill(folder):
        tiny_graph(folder / FLOAT_GRAPH, seed=seed)
        golden.save(folder, answers.model_copy(update={"float_predictions": exact}))

    made = tiny_artifact(tmp_path / "made", fill, execution=Execution(features=("avx1024",)))  # no CPU has it
    if seed == 8:
        with pytest.raises(ArtifactError, match="of 3 golden answers moved"):
            golden.verify(made.path)
    else:
        assert golden.verify(made.path) == made
    assert [record.message.startswith("this CPU lacks avx1024") for record in caplog.records] == [True]


def test_the_same_answers_pass_after_a_round_trip(found, answers, predictor):
    golden.save(found.path, answers)
    loaded = golden.load(found)
    assert loaded == answers
    golden.replay(loaded, predictor)


def test_predictions_keep_every_bit(found):
    task, random = tasks.load("token-classification"), np.random.default_rng(0)
    predictions = [random.normal(size=(count, 3)).astype(np.float32) for count in (2, 0, 4)]
    stored = golden.to_stored(task.dump(predictions))
    golden.save(found.path, Golden(inputs=[], predictions=stored, reference=stored))
    for one, other in zip(golden.from_stored(golden.load(found).predictions, task), predictions, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_the_earlier_form_is_read(found, predictor):
    """Packages of formats before 4 hold texts, pairs and nested lists of scores."""
    texts, pairs = [*TEXTS, "a film"], [None, None, None, "great"]
    scores = [row.tolist() for row in predictor.predict(inputs_of(texts, pairs))]
    content = {"texts": texts, "pairs": pairs, "scores": scores, "reference": [[[0.0, 1.0]]] * 4, "tolerance": 0.05}
    for more in ({}, {"float_scores": None}, {"float_scores": scores}):
        found.file("golden.json").write_text(json.dumps({**content, **more}))
        read = golden.load(found)
        assert read.items(TEXT) == inputs_of(texts, pairs)
        assert [row.tolist() for row in golden.from_stored(read.predictions, TEXT)] == scores
        assert [row.tolist() for row in golden.from_stored(read.reference, TEXT)] == content["reference"]
        assert (read.tolerance, read.float_predictions is None) == (0.05, not more.get("float_scores"))
        golden.save(found.path, read)
        assert golden.load(found) == read
        golden.replay(read, predictor)
    golden.replay(read, predictor, "float_predictions")
    without = {key: value for key, value in content.items() if key != "tolerance"}
    assert Golden.model_validate(without).tolerance == golden.DEFAULT_TOLERANCE


def test_units_of_the_earlier_form_come_back(found):
    """A text without words has no units."""
    rows = [[[0.0, 1.0, 2.0]] * 2, [], [[3.0, 4.0, 5.0]]]
    content = {"texts": ["a b", " ", "c"], "pairs": [None] * 3, "scores": rows, "reference": rows}
    found.file("golden.json").write_text(json.dumps(content))
    loaded = golden.from_stored(golden.load(found).predictions, tasks.load("token-classification"))
    assert [row.shape for row in loaded] == [(2, 3), (0, 3), (1, 3)]
    assert loaded[0].tolist() == rows[0]


def test_a_graph_with_fewer_positions_than_the_manifest_says_is_found(answers, predictor):
    def fail(batch):
        if batch["input_ids"].shape[1] > 32:
            raise RuntimeError("index out of range\nmore")
        return predictor.engine.run(batch)

    engine = SimpleNamespace(run=fail, shape=predictor.engine.shape, execution=predictor.engine.execution)
    message = (
        rf"^the graph fails on an input of {predictor.tokenizer.max_tokens} tokens, the most that the manifest names:"
        r" index out of range\. Package the model again, with a smaller data\.max_tokens\.$"
    )
    with pytest.raises(ArtifactError, match=message):
        golden.replay(answers, replace(predictor, engine=engine))


def test_long_texts_are_replayed_in_windows(predictor):
    inputs = inputs_of([f"{one} " * 60 + f"{other} " * 90 for one, other in pairwise(" ".join(TEXTS).split())])
    assert {len(windows) for windows in predictor.encode(inputs)} == {3}
    predictions = golden.to_stored(TEXT.dump(predictor.predict(inputs)))
    found = Golden(inputs=[item.model_dump() for item in inputs], predictions=predictions, reference=predictions)
    golden.replay(found, predictor)
    with pytest.raises(ArtifactError, match=r" golden answers moved"):
        golden.replay(found, replace(predictor, spec=spec_of(predictor.spec.labels, max_windows=1)))


def test_a_shift_within_the_tolerance_passes(answers, predictor):
    near = shifted(answers, 0, 0.01)
    assert near != answers
    golden.replay(near, predictor)


def test_a_shift_is_the_largest_of_a_probability():
    one = [np.array([[0.0, 0.0], [0.0, 0.0]], dtype=np.float32), np.zeros((0, 2), dtype=np.float32)]
    other = [np.array([[5.0, 5.0], [np.log(3), 0.0]], dtype=np.float32), np.zeros((0, 2), dtype=np.float32)]
    assert golden.distances(TEXT, one, other) == pytest.approx([0.25, 0.0])


# the tolerance


def answers_of(*probabilities):
    return [np.log(np.array([[value, 1 - value]], dtype=np.float32)) for value in probabilities]


@pytest.mark.parametrize(
    ("shifts", "tolerance"),
    [
        ([0.0] * 10, 0.001),
        ([0.0002] * 10, 0.001),
        ([0.01] * 10, 0.02),
        ([0.001] * 19 + [0.4], 0.002),  # one that was undecided says nothing of the others
        ([0.3] * 10, 0.1),
    ],
    ids=["float", "nearly-float", "quantized", "one-undecided", "hardly-a-copy"],
)
def test_a_tolerance_is_twice_what_quantization_moved_nine_in_ten_answers_by(shifts, tolerance):
    exact, predictions = answers_of(*[0.5] * len(shifts)), answers_of(*[0.5 + shift for shift in shifts])
    assert golden.tolerance_of(TEXT, exact, predictions) == pytest.approx(tolerance, rel=1e-3)


def test_the_float_graph_must_give_its_own_answers_and_nearly_exactly(answers, predictor):
    with pytest.raises(ArtifactError, match=r"no answers of the float graph\. Package the model again"):
        golden.replay(answers, predictor, "float_predictions")
    both = answers.model_copy(
        update={"float_predictions": answers.predictions, "predictions": shifted(answers, 1, 3.0).predictions}
    )
    golden.replay(both, predictor, "float_predictions")
    with pytest.raises(ArtifactError, match=r"^1 of 3 golden answers moved: .* expected at most 0\.02"):
        golden.replay(both, predictor)
    near = both.model_copy(update={"float_predictions": shifted(answers, 2, 0.1).predictions})
    with pytest.raises(ArtifactError, match=r"^1 of 3 golden answers moved: .* expected at most 0\.001"):
        golden.replay(near, predictor, "float_predictions")


def test_the_tolerance_that_was_sealed_is_the_one_that_counts(answers, predictor):
    moved = shifted(answers, 2, 0.2)
    with pytest.raises(ArtifactError, match=r"expected at most 0\.02"):
        golden.replay(moved, predictor)
    golden.replay(moved.model_copy(update={"tolerance": 0.1}), predictor)


def test_long_texts_of_the_earlier_form_are_replayed_as_they_were_predicted(predictor):
    """Before format 4, the golden set held the answers of texts that were cut."""
    texts = ["film " * 60 + "plot " * 90, "a film"]
    options = predictor.spec.options.model_copy(update={"max_windows": 1})
    cut = replace(predictor, spec=replace(predictor.spec, options=options)).predict(inputs_of(texts))
    assert golden.distances(TEXT, predictor.predict(inputs_of(texts)), cut)[0] > 0.01  # in windows it is another answer
    scores = [row.tolist() for row in cut]
    earlier = Golden.model_validate({"texts": texts, "pairs": [None] * 2, "scores": scores, "reference": scores})
    golden.replay(earlier, predictor)
    again = Golden.model_validate_json(earlier.model_dump_json())
    golden.replay(again, predictor)
