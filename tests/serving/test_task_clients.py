"""A service of each task, asked by other clients as they are, by our own, and on the page in Chromium."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pages import too_wide, violations
from task_graphs import CASES, TOLERANCE, body_of, close, task_of, weights_of, write_package
from test_launch import ask, environ
from test_openapi import CHECKS

from deploykit import tasks
from deploykit.client import Client, Entity, Prediction, Relation
from deploykit.inference.predictor import Predictor
from deploykit.serving import launch
from deploykit.serving.access import keys
from deploykit.tokenizer import Tokenizer

TEXT = "\U0001f469\u200d\U0001f680 cafe\u0301 \u05e9\u05dc\u05d5\u05dd : a great film . anna lives in london ."
LONG_CONTEXT = f"{'the plot is weak and the film was great . ' * 60}anna lives in london . {'the end . ' * 200}"


@pytest.fixture(scope="module", params=CASES)
def service(request, make_package, tokenizer_folder, tmp_path_factory):
    """A process that serves the task, with answers that are known; one for all tests of the task."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    weights = weights_of(name, Tokenizer.load(tokenizer_folder, 64))
    package = write_package(make_package, folder / "package", name, weight_of=weights)
    key = keys.add(folder / "keys.json", "alice", keys.SCOPES)
    with launch.running_service(package.path, folder / "keys.json", environ=environ(folder)) as url:
        yield SimpleNamespace(url=url, key=key, name=name, task=task_of(name), fields=fields_of(name), package=package)


def fields_of(name, context=TEXT):
    """The texts of an input by their fields."""
    return {"question": "where is anna ?", "context": context} if name == "question-answering" else {"text": context}


def predicted(service, **fields):
    """What the service's own route answers."""
    item = service.task.Input(**{**service.fields, **fields})
    status, text = ask(f"{service.url}/v1/predict", service.key, body_of(service.task, [item]))
    assert status == 200, text
    return json.loads(text)["predictions"][0]


def test_the_answers_are_those_that_the_graph_gives(service):
    """The other tests compare with what is known here."""
    answer = predicted(service)
    for part in (*answer.get("entities", ()), *answer.get("slots", {}).get("entities", ())):
        assert TEXT[part["start"] : part["end"]] == part["text"]
    entities = [("PERSON", "anna"), ("PLACE", "london")]
    found = [(part["label"], part["text"]) for part in answer.get("entities", ())]
    if service.name == "text-classification":
        assert answer["label"] == "positive"
    elif service.name == "multi-label-classification":
        assert answer["labels"] == ["joy"]
    elif service.name == "regression":
        assert answer["score"] > 5
    elif service.name == "token-classification":
        assert found == entities
    elif service.name == "question-answering":
        assert answer["answer"] == TEXT[answer["start"] : answer["end"]] == "london"
    elif service.name == "relation-extraction":
        assert found == entities
        assert [(part["head"], part["label"], part["tail"]) for part in answer["relations"]] == [(0, "in", 1)]
    else:
        assert answer["intent"]["label"] == "stop"
        assert [part["text"] for part in answer["slots"]["entities"]] == ["great film"]


# other clients


@pytest.fixture
def hub(monkeypatch):
    """The client of Hugging Face, which may speak to this machine."""
    library = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    utilities = importlib.import_module("huggingface_hub.utils")  # the open session has the old setting
    (utilities.close_session if hasattr(utilities, "close_session") else utilities.reset_sessions)()
    return library


def test_the_client_of_hugging_face_gets_the_answers_in_its_own_types(service, hub):
    client, ours = hub.InferenceClient(model=f"{service.url}/models/tiny", token=service.key), predicted(service)
    if "pipeline" not in service.task.CAPABILITIES:  # a task that the client does not know
        with pytest.raises(hub.errors.HfHubHTTPError, match="404"):
            client.text_classification(TEXT)
    elif service.name == "question-answering":
        found = client.question_answering(**service.fields)
        assert (found.answer, found.start, found.end) == (ours["answer"], ours["start"], ours["end"])
        assert found.score == pytest.approx(ours["score"], abs=TOLERANCE)
        assert client.question_answering(question="where ?", context="the end .").answer == ""
    elif service.name == "token-classification":
        found = client.token_classification(TEXT, aggregation_strategy="simple")
        assert [(part.entity_group, part.word, part.start, part.end) for part in found] == [
            (part["label"], part["text"], part["start"], part["end"]) for part in ours["entities"]
        ]
        assert client.token_classification("the end .") == []
    else:
        found = client.text_classification(TEXT, top_k=1)
        scores = ours.get("scores", {"score": ours.get("score")})
        best = max(scores, key=scores.get)
        assert [(part.label, part.score) for part in found] == [(best, pytest.approx(scores[best], abs=TOLERANCE))]
        assert len(client.text_classification(TEXT)) == len(scores)


TRITON = """
import json, sys
import numpy as np
import tritonclient.http as triton

address, key, fields = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
client, headers = triton.InferenceServerClient(address), {"authorization": "Bearer " + key}
metadata = client.get_model_metadata("tiny", headers=headers)
answers = []
for binary in (False, True):
    inputs = []
    for described in metadata["inputs"]:
        inputs.append(triton.InferInput(described["name"], [2], described["datatype"]))
        inputs[-1].set_data_from_numpy(np.array([fields[described["name"]]] * 2, dtype=object), binary_data=binary)
    names = [output["name"] for output in metadata["outputs"]]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer("tiny", inputs, outputs=outputs, headers=headers)
    arrays = {name: answer.as_numpy(name) for name in names}
    kinds = {name: str if array.dtype == object else float for name, array in arrays.items()}
    answers.append({name: array.astype(kinds[name]).tolist() for name, array in arrays.items()})
print(json.dumps(answers))
"""


def test_the_client_of_triton_gets_the_answers_as_json_and_the_tensors_of_the_task(service):
    pytest.importorskip("tritonclient")
    command = [
        sys.executable,
        "-c",
        TRITON,
        service.url.removeprefix("http://"),
        service.key,
        json.dumps(service.fields),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    ours, plain = predicted(service), json.loads(ended.stdout)[0]
    for outputs in json.loads(ended.stdout):
        assert close(list(map(json.loads, outputs["answer"])), [ours, ours])
        assert close(outputs | {"answer": []}, plain | {"answer": []})
    scores = list(ours.get("scores", {"score": ours.get("score")}).values())
    assert ("scores" in plain) == ("tensors" in service.task.CAPABILITIES)
    if "scores" in plain:
        assert plain["scores"] == [pytest.approx(scores, abs=TOLERANCE)] * 2


def test_our_own_client_gives_answers_types(service):
    with Client(service.url, service.key) as client:
        if service.task.Input is tasks.TextInput:
            (answer,) = client.predict([TEXT])
        else:
            (answer,) = client.predict(inputs=[service.fields])
    ours = predicted(service)
    assert isinstance(answer, Prediction)
    assert close(json.loads(answer.model_dump_json(exclude_unset=True, exclude={"request", "index"})), ours)
    heads = [answer.intent, answer.slots] if service.name == "multi-task" else [answer]
    assert all(isinstance(head, Prediction) for head in heads)
    assert all(isinstance(entity, Entity) for head in heads for entity in head.entities)
    assert all(isinstance(relation, Relation) for relation in answer.relations)
    assert [len(head.entities) for head in heads][-1] == len((ours.get("slots") or ours).get("entities", ()))
    assert len(answer.relations) == len(ours.get("relations", ()))


def test_signs_that_cannot_be_seen_are_read_and_offsets_count_them(service):
    hidden = "anna\x00\u200f\ufeff lives in\x00 london\x00 ."
    fields = fields_of(service.name, hidden)
    predictor = Predictor.load(service.package, 1)
    (answer,) = predictor.answers([predictor.task.Input(**fields)])
    answer = json.loads(answer.model_dump_json())
    assert close(predicted(service, **fields), answer)
    for part in answer.get("entities", ()):
        assert part["text"] == hidden[part["start"] : part["end"]] in ("anna", "london")
    if service.name == "question-answering":
        assert answer["answer"] == hidden[answer["start"] : answer["end"]] == "london"


def test_a_long_text_is_answered_as_the_predictor_answers_it(service):
    fields = fields_of(service.name, LONG_CONTEXT)
    predictor = Predictor.load(service.package, 1)
    (answer,) = predictor.answers([predictor.task.Input(**fields)])
    assert answer.windows > 10
    assert close(predicted(service, **fields), json.loads(answer.model_dump_json()))


def test_schemathesis_finds_nothing(service, tmp_path):
    """Requests made of the description of the task, right ones and wrong ones, and answers held against it."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", "--checks", ",".join(CHECKS), "--seed", "1"]
    routes = "^/(v1/predict|v2/models/tiny/infer|models/tiny)$"
    options = ["--include-path-regex", routes, "--max-examples", "10", "--phases", "examples,coverage,fuzzing"]
    header, description = f"X-API-Key: {service.key}", f"{service.url}/docs.json"
    ended = subprocess.run(
        [*command, *options, "--header", header, description], cwd=tmp_path, capture_output=True, text=True, timeout=180
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert "Tested: " in ended.stdout


# the page


@pytest.fixture
def picture(tmp_path):
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", full_page=True)


def fill(page, fields):
    for place, text in zip(("#text", "#second"), fields.values(), strict=False):
        page.locator(place).fill(text)
    page.get_by_role("button", name="Predict").click()
    page.locator("#answer").wait_for()


def marks(page):
    """The marked parts of the text, each with its label."""
    return [tuple(text.split("\u00a0")) for text in page.locator("#prediction .passage mark").all_inner_texts()]


def rows(page):
    return [row.locator("th, td").all_inner_texts() for row in page.locator("#prediction tbody tr").all()]


ENTITIES = [("anna", "PERSON"), ("london", "PLACE")]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390), ("light", 320)])
def test_the_page_shows_the_answer_of_each_task(service, visit, picture, scheme, width):
    page = visit(service, service.key, scheme, width)
    fill(page, service.fields)
    answer = page.locator("#prediction")
    said = page.locator("#said").inner_text()
    verdict = answer.locator(".verdict strong")
    names = answer.locator(".bars .name")
    ours = predicted(service)
    if service.name == "text-classification":
        assert (verdict.inner_text(), names.all_inner_texts()) == ("positive", ["positive", "negative"])
        assert "Answer: positive, " in said
    elif service.name == "multi-label-classification":
        assert (verdict.inner_text(), names.all_inner_texts()) == ("joy", ["joy", "fear"])
        assert "Answer: joy." in said
        assert page.locator("#target").input_value() == "joy"
    elif service.name == "regression":
        assert float(verdict.inner_text()) == pytest.approx(ours["score"], rel=1e-3)
        assert f"Answer: {verdict.inner_text()}." in said
    elif service.name == "question-answering":
        assert page.locator("#text-label, #second-label").all_inner_texts() == ["Question", "Context"]
        assert (verdict.inner_text(), marks(page)) == ("london", [("london",)])
        assert answer.locator(".passage").inner_text() == TEXT
        assert "Answer: london, " in said
    elif service.name == "token-classification":
        assert marks(page) == ENTITIES
        assert [tuple(row[:2]) for row in rows(page)] == ENTITIES
        assert "Answer: 2 found." in said
    elif service.name == "relation-extraction":
        assert marks(page) == ENTITIES
        relation = answer.get_by_role("list", name="Relations").get_by_role("listitem")
        words = " ".join(relation.inner_text().split())
        assert words.startswith("anna \u2192 in \u2192 london ")
        assert words.endswith(" %")
        assert "Answer: 2 found, 1 related." in said
    else:
        sections = answer.locator("section")
        assert sections.locator("h3").all_inner_texts() == ["intent", "slots"]
        assert sections.nth(0).locator(".bars .name").all_inner_texts() == ["stop", "play"]
        assert marks(page) == [("great film", "A")]
        assert "Answer: intent: stop, " in said
        assert "; slots: 1 found." in said
    assert not too_wide(page)
    assert violations(page) == []
    picture(page, f"{service.name}-{scheme}-{width}")


def test_the_page_scrolls_to_the_first_part_of_a_long_text_that_is_marked(service, visit, picture):
    page = visit(service, service.key)
    fill(page, fields_of(service.name, LONG_CONTEXT))
    assert "overlapping windows" in page.locator("#reading").inner_text()
    if service.name in ("question-answering", "token-classification", "relation-extraction"):
        assert marks(page) == ([("london",)] if service.name == "question-answering" else ENTITIES)
        box, mark = (page.locator(place).first.bounding_box() for place in (".passage", ".passage mark"))
        assert box["y"] <= mark["y"] <= mark["y"] + mark["height"] <= box["y"] + box["height"]
    assert violations(page) == []
    picture(page, f"{service.name}-long")


NOTHING = {
    "text-classification": "50.0 %",
    "multi-label-classification": "No label",
    "question-answering": "No answer in this text",
    **dict.fromkeys(("token-classification", "relation-extraction", "multi-task"), "Nothing was found in this text."),
}


def test_the_page_says_that_there_is_no_answer_and_nothing_that_was_found(service, visit, picture):
    page = visit(service, service.key)
    fill(page, fields_of(service.name, "the end ."))
    shown = page.locator("#prediction").inner_text()
    assert NOTHING.get(service.name, shown) in shown
    assert page.locator("#prediction table, #prediction mark").count() == 0
    assert violations(page) == []
    picture(page, f"{service.name}-nothing")
