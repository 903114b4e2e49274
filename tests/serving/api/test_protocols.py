"""Other ways to ask: what their clients send and expect, and the same answers in all of them."""

import importlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from asgi import BODY, PREDICT, TEXTS, assert_problem, metrics
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
    assert_problem(client.get("/v2/health/live"), 503, "does not finish its batch")


def binary(texts):
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def post_binary(client, content, data, length=None, kind=None):
    written = json.dumps(content).encode()
    headers = {"inference-header-content-length": str(len(written)) if length is None else length, "content-type": kind}
    return client.post(INFER, content=written + data, headers=headers)


def raw_tensor(data, count=2, name="text", **parameters):
    parameters = {"binary_data_size": len(data), **parameters}
    return {"name": name, "shape": [count], "datatype": "BYTES", "parameters": parameters}


RAW = binary([text.encode() for text in TEXTS])


@pytest.mark.parametrize("kind", [None, "application/octet-stream", "application/json"])
def test_binary_tensors_are_those_in_json(client, kind):
    whole = client.post(INFER, json_body={"inputs": [tensor()]}).json()
    assert post_binary(client, {"inputs": [raw_tensor(RAW)]}, RAW, kind=kind).json() == whole


def test_binary_outputs_where_they_are_asked_for(client):
    whole = {output["name"]: output["data"] for output in client.post(INFER, json_body=KSERVE).json()["outputs"]}
    every = {"inputs": [tensor()], "parameters": {"binary_data_output": True}}
    one = {
        "inputs": [tensor()],
        "outputs": [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "label"}],
    }
    for body, names in ((every, {"answer", "label", "scores"}), (one, {"scores"})):
        answer = client.post(INFER, json_body=body)
        assert answer.headers["content-type"] == "application/octet-stream"
        length, found = int(answer.headers["inference-header-content-length"]), {}
        rest, content = answer.content[length:], json.loads(answer.content[:length])
        for output in content["outputs"]:
            if "data" in output:
                assert output["data"] == whole[output["name"]]
                continue
            size = output["parameters"]["binary_data_size"]
            found[output["name"]], rest = rest[:size], rest[size:]
        assert rest == b""
        assert found.keys() == names
        np.testing.assert_allclose(np.frombuffer(found["scores"], "<f4"), whole["scores"], atol=1e-6)
        for name in names - {"scores"}:
            assert found[name] == binary([text.encode() for text in whole[name]])


@pytest.mark.parametrize(
    ("inputs", "data", "message"),
    [
        ([raw_tensor(RAW)], RAW[:-1], "must have a binary_data_size up to"),
        ([raw_tensor(RAW)], RAW + b"x", "1 bytes after the JSON belong to no tensor"),
        ([raw_tensor(RAW, binary_data_size=-1)], RAW, "must have a binary_data_size up to"),
        ([raw_tensor(RAW, binary_data_size=True)], RAW, "must have a binary_data_size up to"),
        ([raw_tensor(RAW, binary_data_size=None)], RAW, "must have either data or the parameter binary_data_size"),
        ([{**raw_tensor(RAW), "data": TEXTS}], RAW, "must have either data or the parameter binary_data_size"),
        ([raw_tensor(RAW, 3)], RAW, "holds 2 texts, its shape says otherwise"),
        ([{**raw_tensor(b"1234"), "datatype": "FP32"}], b"1234", "must hold texts, of the datatype BYTES"),
        ([raw_tensor(b"\xff\xff\xff\xff", 1)], b"\xff\xff\xff\xff", "ends within a text"),
        ([raw_tensor(b"\x01\x00", 1)], b"\x01\x00", "ends within a text"),
        ([raw_tensor(binary([b"\xff"]), 1)], binary([b"\xff"]), "must hold texts in UTF-8"),
        ([raw_tensor(bytes(400_000), 100_000)], bytes(400_000), "from 1 to 256 texts are answered at once"),
        ([raw_tensor(b"", 0)], b"", "from 1 to 256 texts are answered at once"),
    ],
)
def test_binary_tensors_that_do_not_fit_say_why(client, inputs, data, message):
    answer = post_binary(client, {"inputs": inputs}, data)
    assert_problem(answer, 422, "does not fit")
    assert message in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize("length", ["", "-1", "1e3", "9" * 20, "1000000", "x"])
def test_a_length_of_the_json_that_makes_no_sense(client, length):
    answer = post_binary(client, {"inputs": [raw_tensor(RAW)]}, RAW, length)
    assert_problem(answer, 400, "Inference-Header-Content-Length must be a number up to")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": [tensor(parameters={"shared_memory_region": "a"})]}, "shared_memory_region is not supported: send"),
        ({"inputs": [tensor()], "parameters": {"sequence_id": 7}}, "sequence_id is not supported: nothing is kept"),
        (
            {"inputs": [tensor()], "outputs": [{"name": "scores", "parameters": {"classification": 2}}]},
            "classification is not supported: ask for the output scores",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client, body, message):
    answer = client.post(INFER, json_body=body)
    assert_problem(answer, 422, "does not fit")
    assert message in answer.json()["errors"][0]["message"]
    assert_problem(client.get("/v2/models/tiny/config"), 404, "of its extensions binary_tensor_data only")
    assert_problem(client.get("/v2/models/tiny/versions/1"), 404, "/versions/VERSION")


KSERVE = {  # as KServe's InferRequest writes itself
    **{"id": "0b5e3f1e-6a0c-4d7e-9a53-3d4a1f0c8d11", "model_name": "tiny", "inputs": [tensor()]},
    **{"parameters": {"custom": "x"}, "else": 1},
}


def test_keys_that_nobody_knows_are_ignored(client):
    plain = client.post(INFER, json_body={"inputs": [tensor()]}).json()
    found = client.post(INFER, json_body=KSERVE).json()
    assert found.pop("id") == KSERVE["id"]
    assert found == plain
    extra = {"inputs": [tensor(more=1)], "outputs": [{"name": "label", "more": 1}]}
    assert client.post(INFER, json_body=extra).json()["outputs"] == plain["outputs"][1:2]
    assert client.post(INFER, content=json.dumps(KSERVE).encode()).status == 200  # without a content type
    assert_problem(client.post(PREDICT, content=json.dumps(BODY).encode()), 415, "application/json")


def test_a_model_is_asked_by_its_version(client):
    version = client.get("/v2/models/tiny").json()["versions"][0]
    path = f"/v2/models/tiny/versions/{version}"
    assert client.get(path).json() == client.get("/v2/models/tiny").json()
    assert client.get(f"{path}/ready", headers={"x-api-key": None}).status == 200
    body = {"inputs": [tensor()]}
    assert client.post(f"{path}/infer", json_body=body).json() == client.post(INFER, json_body=body).json()
    assert metrics(client)[f'deploykit_requests_total{{route="{INFER}",status="200"}}'] == 2


TRITON = """
import sys
import numpy as np
import tritonclient.http as triton

address, key = sys.argv[1:]
client, headers = triton.InferenceServerClient(address), {"authorization": "Bearer " + key}
texts = np.array(["a great film", "a weak plot \u2013 no"], dtype=object)
version = client.get_model_metadata("tiny", headers=headers)["versions"][0]
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny", version)
assert "binary_tensor_data" in client.get_server_metadata(headers=headers)["extensions"]
answers = []
for binary in (False, True):
    for outputs in (None, [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "scores")]):
        given = triton.InferInput("text", [2], "BYTES")
        given.set_data_from_numpy(texts, binary_data=binary)
        asked = {"outputs": outputs, "request_id": "7", "model_version": version if outputs else "", "headers": headers}
        answer = client.infer("tiny", [given], priority=1, **asked)
        assert answer.get_response()["id"] == "7"
        answers.append((answer.as_numpy("label").astype(str).tolist(), answer.as_numpy("scores").tolist()))
assert all(answer[0] == answers[0][0] for answer in answers), answers
np.testing.assert_allclose([answer[1] for answer in answers], [answers[0][1]] * 4, atol=1e-6)
try:
    client.infer("tiny", [given], sequence_id=7, headers=headers)
except triton.InferenceServerException as error:
    print(answers[0][0], error)
"""


def test_the_client_of_triton_works_as_it_is(package, key_file, alice, tmp_path):
    pytest.importorskip("tritonclient")
    with launch.running_service(package, key_file, environ=environ(tmp_path)) as url:
        command = [sys.executable, "-c", TRITON, url.removeprefix("http://"), alice]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "the body does not fit" in ended.stdout


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
    utilities = importlib.import_module("huggingface_hub.utils")  # the open session has the old setting
    (utilities.close_session if hasattr(utilities, "close_session") else utilities.reset_sessions)()
    with launch.running_service(package, key_file, environ=environ(tmp_path)) as url:
        found = hub.InferenceClient(model=f"{url}{PIPELINE}", token=alice).text_classification(TEXTS[0])
    assert {one.label for one in found} == {"negative", "positive"}
    assert found[0].score >= found[1].score
