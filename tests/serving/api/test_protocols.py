"""Other ways to ask: what their clients send and expect, and the same answers in all of them."""

import importlib
import json

import numpy as np
import pytest
from asgi import BODY, PREDICT, TEXTS, assert_problem
from test_launch import environ

from deploykit.artifact import ServeOptions
from deploykit.serving import launch

INFER, PIPELINE = "/v2/models/tiny/infer", "/models/tiny"


def tensor(texts=TEXTS, name="text", **changes):
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": list(texts), **changes}


@pytest.fixture
def ours(client):
    """What our own way answers."""
    return client.post(PREDICT, json_body=BODY).json()["predictions"]


# the Open Inference Protocol


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "inputs must be the tensors text"),
        ([tensor(name="texts")], "inputs must be the tensors text"),
        ([tensor(), tensor(name="text_pair")], "inputs must be the tensors text"),
        ([tensor(datatype="FP32")], "must hold texts, of the datatype BYTES"),
        ([tensor(data=[1, 2])], "must hold texts, of the datatype BYTES"),
        ([tensor(shape=[3])], "holds 2 texts, its shape says otherwise"),
        ([tensor([])], "from 1 to 4 texts"),
        ([tensor(["a"] * 5)], "from 1 to 4 texts"),
        ([tensor(datatype="INT64")], "Input should be 'BYTES' or 'FP32'"),
        ([tensor(shape=[-2])], "greater than or equal to 0"),
        ([tensor(shape=[2, 1], data=[["a"], "b"])], "must hold texts, of the datatype BYTES"),
        ([tensor(shape=[1, 2], data=[["a"], ["b"]])], "must hold texts, of the datatype BYTES"),
    ],
)
def test_tensors_that_do_not_fit_say_why(serve, make_package, tmp_path, inputs, message):
    client = serve(make_package(tmp_path / "p", serve=ServeOptions(max_texts=4)).path)
    answer = client.post(INFER, json_body={"inputs": inputs})
    assert_problem(answer, 422, "does not fit")
    assert message in answer.json()["errors"][0]["message"]


def test_tensors_in_and_tensors_out(client, ours):
    found = client.post(INFER, json_body={"id": "42", "inputs": [tensor()]}).json()
    assert set(found) == {"model_name", "model_version", "id", "outputs"}
    assert (found["model_name"], found["id"]) == ("tiny", "42")
    outputs = {output["name"]: output for output in found["outputs"]}
    assert outputs["label"] == {
        **{"name": "label", "shape": [2], "datatype": "BYTES"},
        "data": [answer["label"] for answer in ours],
    }
    assert (outputs["scores"]["shape"], outputs["scores"]["datatype"]) == ([2, 2], "FP32")
    scores = np.reshape(outputs["scores"]["data"], (2, 2))
    np.testing.assert_allclose(scores, [list(answer["scores"].values()) for answer in ours], atol=1e-6)
    assert [json.loads(answer)["label"] for answer in outputs["answer"]["data"]] == [answer["label"] for answer in ours]


def test_only_the_outputs_that_are_asked_for(client):
    body = {"inputs": [tensor(shape=[2, 1])], "outputs": [{"name": "label"}], "parameters": {"priority": 1}}
    found = client.post(INFER, json_body=body).json()
    assert [output["name"] for output in found["outputs"]] == ["label"]
    assert "id" not in found


def test_outputs_that_there_are_not_are_refused(client):
    answer = client.post(INFER, json_body={"inputs": [tensor()], "outputs": [{"name": "logits"}]})
    assert_problem(answer, 422, "does not fit")
    assert answer.json()["errors"][0]["message"].endswith("outputs may be answer, label, scores")
    assert answer.json()["error"] == answer.json()["detail"]


@pytest.mark.parametrize(("shape", "data"), [([2, 1], [["a"], ["b"]]), ([1, 2, 1], [[["a"], ["b"]]])])
def test_data_may_be_nested_as_the_shape_is(client, shape, data):
    nested, flat = (
        client.post(INFER, json_body={"inputs": [tensor(shape=shape, data=found)]}).json()["outputs"]
        for found in (data, ["a", "b"])
    )
    assert nested == flat


def test_pairs_are_two_tensors(serve, make_package, tmp_path):
    client = serve(make_package(tmp_path / "p", pair=True).path)
    answer = client.post(INFER, json_body={"inputs": [tensor(name="text_pair"), tensor()]}).json()
    ours = client.post(PREDICT, json_body={"texts": TEXTS, "text_pairs": TEXTS}).json()["predictions"]
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs["label"] == [found["label"] for found in ours]
    uneven = client.post(INFER, json_body={"inputs": [tensor(), tensor(["a"], name="text_pair")]})
    assert_problem(uneven, 422, "does not fit")
    assert "different numbers of texts" in uneven.json()["errors"][0]["message"]


def test_the_server_and_the_model_describe_themselves(client):
    assert client.get("/v2").json()["name"] == "deploykit"
    found = client.get("/v2/models/tiny").json()
    assert (found["name"], found["platform"]) == ("tiny", "onnxruntime_onnx")
    assert found["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    answered = client.post(INFER, json_body={"inputs": [tensor()]}).json()
    assert found["versions"] == [answered["model_version"]]
    described = {(output["name"], output["datatype"], len(output["shape"])) for output in found["outputs"]}
    assert described == {(output["name"], output["datatype"], len(output["shape"])) for output in answered["outputs"]}
    assert_problem(client.get("/v2", headers={"x-api-key": None}), 401, "needs a key")


def test_probes_of_the_protocol_follow_the_service(client, monkeypatch):
    runtime = client._app._runtime
    nobody = {"x-api-key": None}
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
        assert client.get(path, headers=nobody).status == 200
    runtime.settings.drain.parent.mkdir(parents=True, exist_ok=True)
    runtime.settings.drain.touch()
    for path in ("/v2/health/ready", "/v2/models/tiny/ready", "/readyz"):
        assert_problem(client.get(path, headers=nobody), 503, "not ready")
    assert client.get("/v2/health/live").status == 200
    assert client.post(PREDICT, json_body=BODY).status == 200
    runtime.settings.drain.unlink()
    assert client.get("/v2/health/ready").status == 200
    monkeypatch.setattr(type(runtime), "alive", False)
    assert_problem(client.get("/v2/health/live"), 503, "does not come back")


# Hugging Face's inference API


@pytest.mark.parametrize("inputs", [[], 5, [1], {"text": "a"}, ["a", {"text": "b"}], ["a"] * 300, None])
def test_inputs_that_are_no_texts(client, inputs):
    assert_problem(client.post(PIPELINE, json_body={"inputs": inputs}), 422, "does not fit")


@pytest.mark.parametrize("parameters", [{"function_to_apply": "sigmoid"}, {"aggregation_strategy": "none"}])
def test_parameters_that_would_change_the_answer_are_not_let_pass(client, parameters):
    assert_problem(client.post(PIPELINE, json_body={"inputs": "a", "parameters": parameters}), 422, "does not fit")


@pytest.mark.parametrize("parameters", [None, {}, {"function_to_apply": "softmax", "ignore_labels": ["O"]}])
def test_parameters_that_change_nothing(client, parameters):
    found = [
        client.post(PIPELINE, json_body={"inputs": "a", **more}).json() for more in ({}, {"parameters": parameters})
    ]
    assert found[0] == found[1]


def test_labels_are_ranked_as_pipelines_do(client, ours):
    whole = client.post(PIPELINE, json_body={"inputs": TEXTS}).json()
    for found, answer in zip(whole, ours, strict=True):
        assert found[0]["label"] == answer["label"]
        assert [one["score"] for one in found] == sorted(answer["scores"].values(), reverse=True)
    assert client.post(PIPELINE, json_body={"inputs": TEXTS[0]}).json() == whole[:1]
    body = {"inputs": TEXTS, "parameters": {"top_k": 1, "truncation": True}, "options": {"wait_for_model": True}}
    assert [len(found) for found in client.post(PIPELINE, json_body=body).json()] == [1, 1]


def test_pairs_have_names(serve, make_package, tmp_path):
    client = serve(make_package(tmp_path / "p", pair=True).path)
    inputs = [{"text": text, "text_pair": "the end"} for text in TEXTS]
    found = client.post(PIPELINE, json_body={"inputs": inputs}).json()
    ours = client.post(PREDICT, json_body={"texts": TEXTS, "text_pairs": ["the end"] * 2}).json()["predictions"]
    assert [one[0]["label"] for one in found] == [answer["label"] for answer in ours]
    assert len(client.post(PIPELINE, json_body={"inputs": inputs[0]}).json()) == 1


def test_entities_have_the_names_of_pipelines(serve, make_package, tmp_path):
    client = serve(make_package(tmp_path / "p", task="token-classification", labels=("O", "B-NAME", "I-NAME")).path)
    text = "the plot is weak " * 4
    (ours,) = client.post(PREDICT, json_body={"texts": [text]}).json()["predictions"]
    found = client.post(PIPELINE, json_body={"inputs": text}).json()
    assert [(one["word"], one["start"], one["end"], one["entity_group"]) for one in found] == [
        (one["text"], one["start"], one["end"], one["label"]) for one in ours["entities"]
    ]
    infer = client.post(INFER, json_body={"inputs": [tensor([text])]}).json()
    assert [output["name"] for output in infer["outputs"]] == ["answer"]
    assert json.loads(infer["outputs"][0]["data"][0]) == ours


def test_the_client_of_hugging_face_works_with_another_address(package, key_file, alice, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it would not speak to this machine either
    importlib.import_module("huggingface_hub.utils").reset_sessions()
    with launch.running(package, key_file, environ=environ(tmp_path)) as url:
        found = hub.InferenceClient(model=f"{url}{PIPELINE}", token=alice).text_classification(TEXTS[0])
    assert {one.label for one in found} == {"negative", "positive"}
    assert found[0].score >= found[1].score
