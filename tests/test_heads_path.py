"""The whole path of tasks with several heads, on tiny models: from rows of data to the answers of a service."""

import itertools
import json

import pytest
from asgi import Client
from task_graphs import BETWEEN_BATCHES, close

from deploykit import pipeline, recipe
from deploykit.artifact import Artifact
from deploykit.inference import golden
from deploykit.inference.predictor import Predictor
from deploykit.serving.service import build

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PEOPLE = ("anna", "peter", "maria", "tom")
PLACES = ("london", "paris", "rome", "berlin")


def related(count):
    """Who lives where: in half of the sentences the place comes first, and in some nobody lives there."""
    patterns = (("{0} lives in {1} .", True), ("in {1} lives {0} .", True), ("{0} saw {1} .", False))
    for pattern, lives in itertools.islice(itertools.cycle(patterns), count):
        for person, place in itertools.product(PEOPLE, PLACES):
            text = pattern.format(person, place)
            spans = [(person, "PERSON"), (place, "PLACE")]
            entities = [
                {"start": text.index(name), "end": text.index(name) + len(name), "label": label}
                for name, label in spans
            ]
            relations = [{"head": 0, "tail": 1, "label": "lives_in"}] if lives else []
            yield {"text": text, "spans": entities, "relations": relations}


def headed(count):
    """A film is great or awful, which is also a number, and somebody saw it; some rows lack some labels."""
    for number, person in zip(range(count * 16), itertools.cycle(PEOPLE)):
        good = number % 3 != 0
        text = f"{person} saw a {'great' if good else 'awful'} film"
        row = {"text": text, "label": "good" if good else "bad", "score": 4 if good else 1}
        if number % 4 == 0:
            row = {"text": text, "score": 4 if good else 1}
        elif number % 4 == 1:
            row = {"tokens": text.split(), "tags": ["B-PERSON", "O", "O", "O", "O"]}
        yield row


HEADS = {
    "mood": {"method": "text-classification"},
    "stars": {"method": "regression"},
    "names": {"method": "token-classification"},
}
PATHS = {
    "relation-extraction": ("relation-extraction", related, "relation_f1"),
    "multi-task": ({"method": "multi-task", "heads": HEADS}, headed, "mean_of_heads"),
}


@pytest.fixture(scope="module", params=PATHS)
def packaged(request, tmp_path_factory, tiny_recipe):
    """The name of the task, the recipe and the outcomes of its run."""
    task, rows, _ = PATHS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    for name, count in (("train", 9), ("validation", 3), ("test", 3)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
    data = {name: f"{name}.jsonl" for name in ("train", "validation", "test")}
    path = tiny_recipe(
        folder,
        task=task,
        data={**data, "allow_leakage": True},
        train={"method": "full", "epochs": 10, "learning_rate": 1e-3},
        package={"store": False},
    )
    return request.param, pipeline.run(recipe.load(path))


def test_every_stage_keeps_what_was_learned(packaged):
    name, outcomes = packaged
    values = [outcome.artifact.manifest.step.metrics["test"][PATHS[name][2]].value for outcome in outcomes]
    assert values[0] > 0.9
    assert min(values) > values[0] - 0.1
    sizes = [outcome.artifact.manifest.step.parameters for outcome in outcomes]
    assert sizes[1] < sizes[0]


def test_the_report_has_the_relations_with_true_entities_given(packaged):
    name, outcomes = packaged
    slices = outcomes[0].artifact.manifest.details["train"]["test"].get("slices", {})
    assert list(slices) == (["with the true entities given"] if name == "relation-extraction" else [])
    if slices:
        figures = slices["with the true entities given"]["metrics"]
        assert figures["span_f1"]["value"] == 1
        assert figures["relation_f1"]["value"] > 0.9
        assert "with the true entities given" in (outcomes[0].artifact.path.parent / "report.html").read_text()


def test_the_package_is_verified_and_served(packaged, monkeypatch):
    name, outcomes = packaged
    package = Artifact.load(outcomes[-1].artifact.path)
    golden.verify(package.path)
    monkeypatch.setenv("DEPLOYKIT_AUTH", "off")
    inputs = [{"text": "in paris lives anna ."}, {"text": "peter saw a great film"}]
    expected = [answer.model_dump() for answer in Predictor.load(package, 1).answers([item["text"] for item in inputs])]
    with Client(build(package.path).to_asgi()) as client:
        answers = client.post("/v1/predict", json_body={"inputs": inputs}).json()["predictions"]
        if name == "multi-task":
            one = client.post("/v1/predict", json_body={"inputs": [{**inputs[1], "heads": ["stars"]}]}).json()
            assert [key for key, value in one["predictions"][0].items() if value is None] == ["mood", "names"]
    assert close(answers, json.loads(json.dumps(expected)), BETWEEN_BATCHES), (answers, expected)
    if name == "relation-extraction":
        (relation,) = answers[0]["relations"]
        names = [answers[0]["entities"][relation[end]]["text"] for end in ("head", "tail")]
        assert (names, relation["label"]) == (["anna", "paris"], "lives_in")
    else:
        assert answers[1]["mood"]["label"] == "good"
        assert answers[1]["stars"]["score"] == pytest.approx(4, abs=0.5)
        assert [entity["text"] for entity in answers[1]["names"]["entities"]] == ["peter"]
