import numpy as np
import pytest

from deploykit.artifact import FLOAT_GRAPH, GRAPH
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError
from deploykit.inference import golden
from deploykit.inference.golden import Golden
from deploykit.inference.predictor import Predictor

TEXTS = ["the film is great", "the plot was awful", "a fine cast !"]


@pytest.fixture
def found(tmp_path, tiny_artifact):
    return tiny_artifact(tmp_path / "package")


@pytest.fixture
def predictor(found):
    return Predictor.load(found, cores=1)


@pytest.fixture
def answers(predictor):
    scores = [row.tolist() for row in predictor.predict(TEXTS)]
    return Golden(texts=TEXTS, pairs=[None] * 3, scores=scores, reference=scores)


def shifted(answers, index, amount):
    scores = [[list(unit) for unit in row] for row in answers.scores]
    scores[index][0][0] += amount
    return answers.model_copy(update={"scores": scores})


def test_an_artifact_without_a_golden_set_is_refused(found):
    with pytest.raises(ArtifactError, match=r"package/golden\.json cannot be read \(.*\)\. Package the model again\."):
        golden.load(found)


@pytest.mark.parametrize("content", ["{", "{}", '{"texts": [], "pairs": [], "scores": [], "reference": [], "more": 1}'])
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
    other = answers.model_copy(update={"scores": [[[1.0, 2.0, 3.0]], *answers.scores[1:]]})
    with pytest.raises(ArtifactError, match=r"^1 of 3 golden answers moved: a probability shifted by up to inf"):
        golden.replay(other, predictor)


def test_the_float_graphs_answers_are_needed_and_may_hardly_move(answers, predictor):
    with pytest.raises(ArtifactError, match=r"holds no answers of the float graph\. Package the model again\."):
        golden.replay(answers, predictor, "float_scores")
    moved = shifted(answers, 1, 0.01)  # enough for the chosen graph
    with pytest.raises(ArtifactError, match=r"^1 of 3 golden answers moved: .* expected at most 0\.001\."):
        golden.replay(answers.model_copy(update={"float_scores": moved.scores}), predictor, "float_scores")
    golden.replay(moved.model_copy(update={"float_scores": answers.scores}), predictor, "float_scores")


@pytest.mark.parametrize("seed", [7, 8])
def test_verify_asks_the_float_graph_where_the_choice_cannot_run(
    tmp_path, tiny_artifact, tiny_graph, answers, seed, caplog
):
    other = tiny_artifact(tmp_path / "other", lambda folder: tiny_graph(folder / GRAPH, seed=7))
    exact = [row.tolist() for row in Predictor.load(other, 1).predict(TEXTS)]

    def fill(folder):
        tiny_graph(folder / FLOAT_GRAPH, seed=seed)
        golden.save(folder, answers.model_copy(update={"float_scores": exact}))

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


def test_a_shift_within_the_tolerance_passes(answers, predictor):
    near = shifted(answers, 0, 0.01)
    assert near != answers
    golden.replay(near, predictor)


def test_a_shift_is_the_largest_of_a_probability():
    one = [np.array([[0.0, 0.0], [0.0, 0.0]], dtype=np.float32), np.zeros((0, 2), dtype=np.float32)]
    other = [np.array([[5.0, 5.0], [np.log(3), 0.0]], dtype=np.float32), np.zeros((0, 2), dtype=np.float32)]
    assert golden.moved(one, other) == pytest.approx([0.25, 0.0])


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
    exact, scores = answers_of(*[0.5] * len(shifts)), answers_of(*[0.5 + shift for shift in shifts])
    assert golden.tolerance_of(exact, scores) == pytest.approx(tolerance, rel=1e-3)


def test_the_float_graph_must_give_its_own_answers_and_nearly_exactly(answers, predictor):
    with pytest.raises(ArtifactError, match=r"no answers of the float graph\. Package the model again"):
        golden.replay(answers, predictor, "float_scores")
    both = answers.model_copy(update={"float_scores": answers.scores, "scores": shifted(answers, 1, 3.0).scores})
    golden.replay(both, predictor, "float_scores")
    with pytest.raises(ArtifactError, match=r"^1 of 3 golden answers moved: .* expected at most 0\.02"):
        golden.replay(both, predictor)
    near = both.model_copy(update={"float_scores": shifted(answers, 2, 0.1).scores})
    with pytest.raises(ArtifactError, match=r"^1 of 3 golden answers moved: .* expected at most 0\.001"):
        golden.replay(near, predictor, "float_scores")


def test_the_tolerance_that_was_sealed_is_the_one_that_counts(answers, predictor):
    moved = shifted(answers, 2, 0.2)
    with pytest.raises(ArtifactError, match=r"expected at most 0\.02"):
        golden.replay(moved, predictor)
    golden.replay(moved.model_copy(update={"tolerance": 0.1}), predictor)
