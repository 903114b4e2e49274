"""Names of people: found by a model that the test trains, through Presidio as a service uses it."""

import threading

import pytest
from asgi import PREDICT, metrics

from deploykit.artifact import RecordOptions, ServeOptions
from deploykit.errors import InputError, MissingExtraError
from deploykit.serving import launch
from deploykit.serving.privacy import person_names
from deploykit.serving.privacy.person_names import MAX_CALL_CHARACTERS, PersonNameFinder

pytest.importorskip("presidio_analyzer")
spacy = pytest.importorskip("spacy")

pytestmark = pytest.mark.filterwarnings("ignore")  # of two libraries that are not ours

PEOPLE = ["Anna Lee", "Bob Miller", "Carla Gomez", "David King", "Emma Stone", "Frank Moore"]
PATTERNS = ["my name is {}", "please ask {} about it", "{} is not there", "thank you {}", "I met {} in town"]


def trained(folder, label="PER"):
    """Writes a spaCy model that knows six people."""
    from spacy.training import Example
    from spacy.util import fix_random_seed

    fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("ner").add_label(label)
    rows = []
    for pattern in PATTERNS:
        for person in PEOPLE:
            start = pattern.index("{")
            entities = {"entities": [(start, start + len(person), label)]}
            rows.append(Example.from_dict(nlp.make_doc(pattern.format(person)), entities))
    rows += [Example.from_dict(nlp.make_doc(text), {"entities": []}) for text in ("a great film", "it is late")] * 5
    nlp.initialize(lambda: rows)
    for _ in range(12):
        nlp.update(rows)
    nlp.to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("spacy") / "model")


@pytest.mark.parametrize("options", [{}, {"redact": False, "records": None}])
def test_a_model_that_would_mask_nothing(options):
    with pytest.raises(ValueError, match="set one of them, too"):
        ServeOptions(redact_names="en_core_web_sm", **options)


def test_no_service_starts_that_cannot_find_names(make_package, tmp_path, key_file, alice, monkeypatch):
    def starts(model):
        serving = ServeOptions(redact=True, redact_names=model)
        launch.plan(make_package(tmp_path / model.replace("/", "_"), serve=serving).path, keys=key_file)

    for name in ("xx_not_installed", "../nowhere", "os.path"):
        with pytest.raises(InputError, match=r"wants the spaCy model .*, which is not installed here"):
            starts(name)
    monkeypatch.setattr(person_names, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[presidio\]'"):
        starts("en_core_web_sm")


def test_models_that_find_no_people(tmp_path):
    spacy.blank("en").to_disk(tmp_path / "none")
    with pytest.raises(InputError, match="finds no names"):
        PersonNameFinder(str(tmp_path / "none"))
    with pytest.raises(InputError, match="knows no names of people"):
        PersonNameFinder(trained(tmp_path / "places", "LOC"))
    (tmp_path / "none" / "config.cfg").write_text("[")
    with pytest.raises(InputError, match="cannot be loaded"):
        PersonNameFinder(str(tmp_path / "none"))


@pytest.mark.parametrize("text", [f"please ask {person} about it" for person in PEOPLE] + ["a great film", ""])
def test_names_are_found_where_they_stand(model, text):
    found = [text[start:stop] for start, stop in PersonNameFinder(model)(text)]
    assert found == [person for person in PEOPLE if person in text]


def test_all_of_a_long_text_is_looked_at(model):
    text = "it is late " * (MAX_CALL_CHARACTERS // 11) + " please ask Anna Lee about it " + "a film " * 9000
    found = [text[start:stop] for start, stop in PersonNameFinder(model)(text)]
    assert "Anna Lee" in found
    assert len(list(person_names._split("x" * (3 * MAX_CALL_CHARACTERS)))) == 3
    parts = list(person_names._split(text))
    assert "".join(text[start:stop] for start, stop in parts) == text


def test_threads_do_not_disturb_each_other(model):
    find, wrong = PersonNameFinder(model), []

    def ask(person):
        for _ in range(20):
            text = f"thank you {person}"
            wrong.extend([text] if [text[a:b] for a, b in find(text)] != [person] else [])

    threads = [threading.Thread(target=ask, args=[person]) for person in PEOPLE]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_model_reads_no_names_and_the_records_hold_none(serve, make_package, tmp_path, model, package, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_RECORDS", str(tmp_path / "records"))
    records = RecordOptions(share=1)
    text, masked = "please ask Anna Lee about it", "please ask xxxx xxx about it"
    plain = serve(package).post(PREDICT, json_body={"texts": [masked]}).json()["predictions"]
    for redact in (True, False):
        serving = ServeOptions(redact=redact, redact_names=model, records=records)
        client = serve(make_package(tmp_path / f"{redact}", serve=serving).path)
        answers = client.post(PREDICT, json_body={"texts": [text]}).json()["predictions"]
        assert (answers == plain) is redact
        assert metrics(client)['deploykit_redacted_total{kind="person"}'] == redact
        client._app._runtime.records.close()
    kept = b"".join(file.read_bytes() for file in (tmp_path / "records").iterdir())
    assert kept.count(masked.encode()) == 2
    assert b"Anna" not in kept


def test_a_model_that_breaks_keeps_the_service_from_being_ready(serve, make_package, tmp_path, model):
    (tmp_path / "broken").mkdir()
    serving = ServeOptions(redact=True, redact_names=str(tmp_path / "broken"))
    client = serve(make_package(tmp_path / "p", serve=serving).path)
    assert client.get("/readyz").status == 503
    assert "cannot be loaded" in client._app._runtime.fault
