"""A text of 2,000 tokens is read alike by the predictor, an evaluation, the golden set and the running service."""

import json
from dataclasses import replace

import numpy as np
import pytest
from task_graphs import CASES, HEADS, TOLERANCE, body_of, close, write_package

from deploykit import tasks
from deploykit.data import Dataset
from deploykit.errors import ArtifactError
from deploykit.evaluation import scoring
from deploykit.inference import golden
from deploykit.inference.predictor import Predictor
from deploykit.tasks import Example, are_same
from deploykit.tasks.multi_task import MultiTask, Options
from deploykit.tasks.question_answering import Input as Question
from deploykit.tasks.relation_extraction import Input as Related
from deploykit.tokenizer import Tokenizer

TOKENS, WINDOWS = 2000, 100
WORDS = ["the", "film", "great", "anna", "london", "plot", "moving", "was", "weak", ".", ","]
LONG = " ".join([*np.random.default_rng(0).choice(WORDS, size=TOKENS), "ending", "the", "film"])
INPUT_OF = {
    "question-answering": lambda text: Question(question="where is anna ?", context=text),
    "relation-extraction": lambda text: Related(text=text),
    "multi-task": lambda text: MultiTask(Options(heads=HEADS)).Input(text=text),
}
ROUTES = {"predict": "/v1/predict", "infer": "/v2/models/tiny/infer", "pipeline": "/models/tiny"}


def input_of(name, text):
    return INPUT_OF.get(name, lambda text: tasks.TextInput(text=text))(text)


def outside_mostly(name):
    """Weights with which few tokens begin an entity, as in texts that people write."""
    weights = np.random.default_rng(3).normal(size=(200, len(CASES[name].labels))).astype(np.float32)
    weights[:, 0] += 1.5
    return weights


def certain_of(token):
    """Weights with which a token is the answer to every question."""
    weights = np.random.default_rng(3).normal(size=(200, 1)).astype(np.float32)
    weights[token] = 15
    return weights


@pytest.fixture(scope="module")
def long_package(make_package, tmp_path_factory, tokenizer_folder):
    """`long_package(name, max_windows) -> Artifact`: of a task, with the long text in its golden set."""
    answer = certain_of(Tokenizer.load(tokenizer_folder, 64).backend.token_to_id("ending"))
    weights = {
        "token-classification": {"logits": outside_mostly("token-classification")},
        "relation-extraction": {"tag_logits": outside_mostly("relation-extraction")},
        "question-answering": {"start_logits": answer, "end_logits": answer},
    }
    packages = {}

    def write(name, max_windows=WINDOWS):
        if (name, max_windows) not in packages:
            questions = [*CASES[name].inputs, input_of(name, LONG)]
            target = tmp_path_factory.mktemp(name) / "package"
            packages[name, max_windows] = write_package(
                make_package, target, name, questions, weights.get(name), max_windows=max_windows
            )
        return packages[name, max_windows]

    return write


def as_json(answer):
    return json.loads(answer.model_dump_json())


@pytest.mark.parametrize("max_windows", [WINDOWS, 1])
@pytest.mark.parametrize("name", CASES)
def test_evaluation_golden_set_and_service_agree_on_a_long_text(serve, long_package, name, max_windows):
    package, item, short = long_package(name, max_windows), input_of(name, LONG), CASES[name].inputs[0]
    predictor = Predictor.load(package, 1)
    task, spec = predictor.task, predictor.spec
    (alone,) = predictor.predict([item])
    (answer,) = predictor.answers([item])
    assert (answer.windows > 30, answer.truncated) == (max_windows > 1, max_windows == 1)
    assert answer.tokens >= TOKENS or max_windows == 1
    if name == "question-answering":
        assert (answer.answer == "ending") == (max_windows > 1)

    rows = tuple(Example(part, None) for part in (short, item, short))  # beside others, as in an evaluation
    evaluated = scoring.predict_all(predictor, Dataset(rows, rows, rows, spec.labels, {}))
    stored = golden.load(package)
    verified = golden.from_stored(stored.predictions, task)[-1]
    for other in (evaluated["validation"][1], evaluated["test"][1], verified, stored.predict(predictor)[-1]):
        assert are_same(task.decide(other, spec), task.decide(alone, spec)) or name == "regression"
        assert task.distance(other, alone) <= TOLERANCE
    golden.verify(package.path)

    client, expected = serve(package.path), as_json(answer)
    response = client.post(ROUTES["predict"], json_body=body_of(task, [short, item]))
    assert response.status == 200, response.content
    assert close(response.json()["predictions"][1], expected)
    texts = {key: value for key, value in item if isinstance(value, str)}
    tensors = [{"name": key, "datatype": "BYTES", "shape": [1], "data": [value]} for key, value in texts.items()]
    outputs = client.post(ROUTES["infer"], json_body={"inputs": tensors}).json()["outputs"]
    assert close(json.loads(outputs[0]["data"][0]), expected)
    if "pipeline" in task.CAPABILITIES:
        (ranked,) = client.post(
            ROUTES["pipeline"], json_body={"inputs": [item.model_dump() if len(texts) > 1 else LONG]}
        ).json()
        assert close(ranked, task.pipeline(answer, None))


@pytest.mark.parametrize("name", ["text-classification", "token-classification", "question-answering"])
def test_a_golden_answer_to_a_long_text_that_moved_is_found(long_package, name):
    package = long_package(name)
    predictor, stored = Predictor.load(package, 1), golden.load(package)
    golden.replay(stored, predictor)
    cut = replace(
        predictor, spec=replace(predictor.spec, options=predictor.spec.options.model_copy(update={"max_windows": 1}))
    )
    with pytest.raises(ArtifactError, match=r"[12] of 3 golden answers moved"):
        golden.replay(stored, cut)


@pytest.mark.parametrize("name", CASES)
def test_with_one_window_a_text_is_read_as_its_beginning_alone_is(long_package, name):
    predictor = Predictor.load(long_package(name, 1), 1)
    ((window,),) = predictor.encode([input_of(name, LONG)])
    end = int(window.encoding.offsets[slice(None) if window.part is None else window.part[1], 1].max())
    assert 100 < end < 500
    whole, beginning = (
        as_json(answer) for answer in predictor.answers([input_of(name, LONG), input_of(name, LONG[:end])])
    )
    for answer, truncated in ((whole, True), (beginning, False)):
        assert answer["windows"] == 1
        for part in (answer, *(answer[head] for head in HEADS if name == "multi-task")):
            assert part.pop("truncated") == truncated
    assert close(whole, beginning)
