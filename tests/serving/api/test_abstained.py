"""A service whose model abstains, in every protocol, in its metrics, its records and its client."""

import json
import time

import pytest
from asgi import PREDICT, metrics

from deploykit.artifact import RecordOptions, ServeOptions
from deploykit.client.answers import Prediction

TEXTS = ["a great film", "the plot is weak", "the end", "film"]


@pytest.fixture
def answers(client):
    """What a service answers that never abstains."""
    return client.post(PREDICT, json_body={"texts": TEXTS}).json()["predictions"]


@pytest.fixture
def threshold(answers):
    """A probability above that of some texts, and below that of others."""
    scores = sorted(answer["score"] for answer in answers)
    return (scores[1] + scores[2]) / 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_RECORDS", str(tmp_path / "records"))
    return tmp_path / "records"


@pytest.fixture
def abstaining(serve, make_package, threshold, tmp_path, folder):
    options, records = {"abstain_below": threshold}, ServeOptions(records=RecordOptions(share=1))
    return serve(make_package(tmp_path / "package", task_options=options, serve=records).path)


def test_answers_below_the_threshold_say_so_and_are_otherwise_the_same(abstaining, answers, threshold):
    found = abstaining.post(PREDICT, json_body={"texts": TEXTS}).json()["predictions"]
    assert [answer["abstained"] for answer in answers] == [False] * len(TEXTS)
    assert [answer["abstained"] for answer in found] == [answer["score"] < threshold for answer in answers]
    assert sum(answer["abstained"] for answer in found) == 2
    for abstained, answer in zip(found, answers, strict=True):
        assert {**abstained, "abstained": False} == {
            **answer,
            "score": pytest.approx(answer["score"]),
            "scores": pytest.approx(answer["scores"]),
        }
        assert Prediction.model_validate(abstained).abstained == abstained["abstained"]


def test_the_inference_api_ignores_it_and_the_answer_of_open_inference_has_it(abstaining, client, answers, threshold):
    body = {"inputs": TEXTS}
    first, second = (service.post("/models/tiny", json_body=body).json() for service in (abstaining, client))
    assert [[label["label"] for label in row] for row in first] == [[label["label"] for label in row] for row in second]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(TEXTS)], "data": TEXTS}
    outputs = abstaining.post("/v2/models/tiny/infer", json_body={"inputs": [tensor]}).json()["outputs"]
    assert [output["name"] for output in outputs] == ["answer", "label", "scores"]
    said = [json.loads(text)["abstained"] for text in outputs[0]["data"]]
    assert said == [answer["score"] < threshold for answer in answers]


def test_metrics_count_it_and_records_keep_it(abstaining, folder):
    found = abstaining.post(PREDICT, json_body={"texts": TEXTS}).json()["predictions"]
    assert metrics(abstaining)["deploykit_abstained_total"] == 2
    end, lines = time.monotonic() + 10, []
    while len(lines) < len(TEXTS) and time.monotonic() < end:
        lines = [line for file in folder.glob("*") for line in file.read_text().splitlines()]
        time.sleep(0.01)
    records = sorted(map(json.loads, lines), key=lambda record: record["index"])
    assert [record["abstained"] for record in records] == [answer["abstained"] for answer in found]
