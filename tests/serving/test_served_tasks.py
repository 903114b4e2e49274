"""Each task, served: its own route, the inference API, tensors, and the page."""

import json

import pytest
from task_graphs import CASES, TEXTS, body_of, task_of, write_package

from deploykit import tasks
from deploykit.inference.predictor import Predictor
from deploykit.tasks.question_answering import Input as Question

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
