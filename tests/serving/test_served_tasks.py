"""Each task, served: its own route, the inference API, tensors, and the page."""

import json

import pytest
from task_graphs import CASES, GIVEN, TEXTS, body_of, task_of, write_package

from deploykit import tasks
from deploykit.artifact import RecordOptions, ServeOptions
from deploykit.inference.predictor import Predictor
from deploykit.tasks.question_answering import Input as Question
from deploykit.tasks.relation_extraction import Input as Related

PREDICT = "/v1/predict"


@pytest.fixture(params=CASES)
def served(request, serve, make_package, tmp_path):
    """A client of a service of the task, the task, its inputs, and the answers that the predictor gives."""
    package = write_package(make_package, tmp_path / "package", request.param)
    return serve(package.path), task_of(request.param), CASES[request.param].inputs, package


def expected(package, inputs):
    return [answer.model_dump() for answer in Predictor.load(package, 1).answers(inputs)]


def approximately(answers):
    """Answers whose numbers may differ in the last digits: batches differ."""
    return json.loads(json.dumps(answers), parse_float=lambda text: round(float(text), 4))


def test_the_service_answers_as_the_predictor_does(served):
    client, task, inputs, package = served
    body = body_of(task, inputs)
    response = client.post(PREDICT, json_body=body)
    assert response.status == 200, response.content
    assert approximately(response.json()["predictions"]) == approximately(expected(package, inputs))
    assert client.post(PREDICT, json_body={"nothing": 1}).status == 422


def test_the_inference_api_gives_what_a_pipeline_gives(served):
    client, task, inputs, package = served
    if "pipeline" not in task.CAPABILITIES:
        assert client.post("/models/tiny", json_body={"inputs": TEXTS}).status == 404
        return
    (items,) = body_of(task, inputs).values()
    response = client.post("/models/tiny", json_body={"inputs": items})
    assert response.status == 200, response.content
    answers = [task.Answer.model_validate(answer) for answer in expected(package, inputs)]
    assert approximately(response.json()) == approximately([task.pipeline(answer, None) for answer in answers])


FUNCTIONS = {"text-classification": "softmax", "multi-label-classification": "sigmoid", "regression": "none"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_inference_api_accepts_the_function_that_gives_the_scores_and_no_other(serve, make_package, tmp_path, name):
    client = serve(write_package(make_package, tmp_path / "package", name).path)
    plain = client.post("/models/tiny", json_body={"inputs": TEXTS}).json()
    for function in FUNCTIONS.values():
        body = {"inputs": TEXTS, "parameters": {"function_to_apply": function}}
        response = client.post("/models/tiny", json_body=body)
        assert (response.status == 200) == (function == FUNCTIONS[name])
        if response.status == 200:
            assert response.json() == plain


def test_open_inference_clients_get_the_answer_and_the_tensors_of_the_task(served):
    client, task, inputs, package = served
    metadata = client.get("/v2/models/tiny").json()
    names = [tensor["name"] for tensor in metadata["inputs"]]
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [len(inputs)], "data": [getattr(item, name) for item in inputs]}
        for name in names
        if isinstance(getattr(inputs[0], name), str)
    ]
    response = client.post("/v2/models/tiny/infer", json_body={"inputs": tensors})
    assert response.status == 200, response.content
    outputs = {output["name"]: output for output in response.json()["outputs"]}
    assert set(outputs) == {tensor["name"] for tensor in metadata["outputs"]}
    answers = [json.loads(text) for text in outputs["answer"]["data"]]
    plain = [task.Input(**{name: getattr(item, name) for name in names}) for item in inputs]
    assert approximately(answers) == approximately(expected(package, plain))
    assert ("scores" in outputs) == ("tensors" in task.CAPABILITIES)


def test_the_page_knows_the_fields_of_an_input_and_the_routes_that_are_there(served):
    client, task, _, _ = served
    about = client.get("/v1/model").json()
    assert about["fields"] == (["question", "context"] if task.Input is Question else ["text"])
    assert [about["body"]] == list(body_of(task, CASES[about["task"]].inputs))
    assert about["explains"] == ("explain" in task.CAPABILITIES)
    assert (client.post("/v1/explain", json_body={"texts": ["a film"]}).status != 404) == about["explains"]


def test_labels_and_answers_are_counted(served):
    client, task, inputs, package = served
    body = body_of(task, inputs)
    client.post(PREDICT, json_body=body)
    page = client.get("/metrics").content.decode()
    assert "deploykit_input_tokens_count 2.0" in page
    counted = sum(
        float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith("deploykit_predictions_total{")
    )
    predictor = Predictor.load(package, 1)
    observed = task.observe(predictor.predict(inputs), predictor.spec)
    assert counted == len(observed.labels)
    assert (counted > 0) == (task is not tasks.load("regression"))


PERSONAL = "anna@mail.example lives in london ."
MASKED = "xxxx@xxxx.xxxxxxx lives in london ."
PERSONAL_INPUTS = {
    "question-answering": [
        Question(question=PERSONAL, context=PERSONAL),
        Question(question="who ?", contexts=("london .", PERSONAL)),
    ],
    "relation-extraction": [Related(text=PERSONAL), Related(text=PERSONAL, entities=GIVEN)],
}


def personal_inputs(name):
    own = task_of(name).Input
    return PERSONAL_INPUTS.get(name) or [own(text=PERSONAL), own(text="the end")]


@pytest.mark.parametrize("name", CASES)
def test_every_text_of_an_input_is_masked_before_the_model_reads_it(serve, make_package, tmp_path, name):
    """A service that masks answers as one that is asked about masked texts, but for the texts in the answer."""
    inputs, task = personal_inputs(name), task_of(name)
    masking, plain = (
        serve(write_package(make_package, tmp_path / str(masks), name, changes={"serve": options}).path)
        for masks, options in ((True, ServeOptions(redact=True)), (False, ServeOptions()))
    )
    masked = [type(item).model_validate_json(item.model_dump_json().replace(PERSONAL, MASKED)) for item in inputs]
    assert PERSONAL not in str(masked)
    first, second = (
        client.post(PREDICT, json_body=body_of(task, items)).json()["predictions"]
        for client, items in ((masking, inputs), (plain, masked))
    )
    assert approximately(without_texts(first)) == approximately(without_texts(second))


def without_texts(answers):
    """Answers without the parts of the input that they quote."""
    if isinstance(answers, list):
        return list(map(without_texts, answers))
    if isinstance(answers, dict):
        return {key: without_texts(value) for key, value in answers.items() if key not in ("text", "answer")}
    return answers


@pytest.mark.parametrize("name", CASES)
def test_every_text_of_an_input_is_masked_in_the_records(serve, make_package, tmp_path, monkeypatch, name):
    monkeypatch.setenv("DEPLOYKIT_RECORDS", str(tmp_path / "records"))
    inputs, task = personal_inputs(name), task_of(name)
    serving = ServeOptions(records=RecordOptions(share=1))
    client = serve(write_package(make_package, tmp_path / "package", name, changes={"serve": serving}).path)
    response = client.post(PREDICT, json_body=body_of(task, inputs))
    assert response.status == 200, response.content
    client._app._runtime.records.close()
    (file,) = (tmp_path / "records").iterdir()
    written = file.read_text()
    assert "anna" not in written
    assert written.count("xxxx@xxxx.xxxxxxx") == sum(item.texts.count(PERSONAL) for item in inputs)
    records = [json.loads(line) for line in written.splitlines()]
    assert [record["index"] for record in records] == [0, 1]
    assert [record["tokens"] for record in records] == [answer["tokens"] for answer in response.json()["predictions"]]
