"""Records: what is not asked for is not stored, and what is stored is masked, bounded, and in nobody's way."""

import errno
import json
import os
import stat
import sys
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgi import BODY, PREDICT, TEXTS, assert_problem, metrics

from deploykit import artifact
from deploykit.artifact import RecordOptions, ServeOptions
from deploykit.errors import InputError
from deploykit.serving import launch, settings
from deploykit.serving.access import keys
from deploykit.serving.privacy import record_files, records
from deploykit.serving.privacy.records import MAX_RECORD_CHARACTERS, MAX_WAITING_RECORDS, RecordFiles

FEEDBACK = "/v1/feedback"
PERSONAL = "write to anna@mail.example or +49 170 1234567"
MASKED = "write to xxxx@xxxx.xxxxxxx or +00 000 0000000"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where records go."""
    monkeypatch.setenv("DEPLOYKIT_RECORDS", str(tmp_path / "records"))
    return tmp_path / "records"


@pytest.fixture
def recording(serve, recording_package, folder):
    return serve(recording_package.path)


def kept(folder, count=None):
    """Waits for as many records, and returns what there is."""
    end = time.monotonic() + 10
    while True:
        lines = [line for file in sorted(folder.glob("*")) for line in file.read_bytes().split(b"\n") if line]
        if count is None:
            return [json.loads(line) for line in lines]
        if len(lines) >= count or time.monotonic() > end:
            assert len(lines) == count
            return [json.loads(line) for line in lines]
        time.sleep(0.01)


# Both have to agree


def test_nothing_is_kept_unless_the_recipe_and_the_machine_say_so(serve, package, recording_package, folder, caplog):
    assert serve(package).post(PREDICT, json_body=BODY).status == 200
    del os.environ["DEPLOYKIT_RECORDS"]
    client = serve(recording_package.path)
    assert client.post(PREDICT, json_body=BODY).status == 200
    assert_problem(client.post(FEEDBACK, json_body={"id": "1", "label": "positive"}), 404, "no such path")
    assert client._app._runtime.records is None
    assert not folder.exists()


@pytest.mark.parametrize("which", ["recipe", "machine"])
def test_one_without_the_other_is_pointed_out(which, package, recording_package, tmp_path, caplog):
    given = settings.load_settings(
        package if which == "machine" else recording_package.path,
        {"DEPLOYKIT_RECORDS": str(tmp_path)} if which == "machine" else {},
    )[0]
    records.require_folder(given)
    missing = "serve.records in the recipe" if which == "machine" else "DEPLOYKIT_RECORDS"
    assert [record.getMessage() for record in caplog.records] == [f"no records are kept: {missing} is not set"]


def test_a_folder_that_cannot_be_written_stops_the_start(recording_package, tmp_path, key_file, alice):
    (tmp_path / "file").touch()
    environ = {**os.environ, "DEPLOYKIT_RECORDS": str(tmp_path / "file")}
    with pytest.raises(InputError, match=r"DEPLOYKIT_RECORDS names .*file, and records cannot be written there"):
        launch.plan(recording_package.path, keys=key_file, port=launch.free_port(), environ=environ)


@pytest.mark.parametrize("options", [{"share": 0}, {"share": 1.1}, {"megabytes": 0}, {"days": 3}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RecordOptions(**options)


# What is kept


@pytest.mark.parametrize("path", [PREDICT, "/models/tiny", "/v2/models/tiny/infer"])
def test_every_way_to_ask_is_recorded(recording, recording_package, folder, path):
    texts = ["a great film", PERSONAL]
    body = {
        PREDICT: {"texts": texts},
        "/models/tiny": {"inputs": texts},
        "/v2/models/tiny/infer": {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": texts}]},
    }
    answers = recording.post(PREDICT, json_body={"texts": texts}, headers={"x-request-id": "own"})
    before = kept(folder, 2)
    reply = recording.post(path, json_body=body[path])
    found = kept(folder, 4)[2:]
    manifest = recording_package.manifest
    for index, (record, answer) in enumerate(zip(found, answers.json()["predictions"], strict=True)):
        assert record == {
            "kind": "prediction",
            "time": record["time"],
            "id": reply.headers["x-request-id"],
            "index": index,
            "client": "alice",
            "model": "tiny",
            "version": manifest.key[:12],
            "digest": recording_package.digest[:12],
            "text": ["a great film", MASKED][index],
            "tokens": answer["tokens"],
            "label": answer["label"],
            "confidence": pytest.approx(answer["score"]),
            "abstained": False,
        }
    assert {record["id"] for record in before} == {"own"}
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert metrics(recording)["deploykit_records_written_total"] == 4


def test_pairs_are_masked_on_both_sides(serve, make_package, tmp_path, folder):
    serving = ServeOptions(records=RecordOptions(share=1))
    client = serve(make_package(tmp_path / "p", pair=True, serve=serving).path)
    client.post(PREDICT, json_body={"texts": [PERSONAL], "text_pairs": [PERSONAL]})
    (record,) = kept(folder, 1)
    assert (record["text"], record["text_pair"]) == (MASKED, MASKED)


def test_spans_are_kept_without_their_text(serve, make_package, tmp_path, folder):
    task, labels = "token-classification", ("O", "B-NAME", "I-NAME")
    serving = ServeOptions(records=RecordOptions(share=1))
    client = serve(make_package(tmp_path / "p", task=task, labels=labels, serve=serving).path)
    answer = client.post(PREDICT, json_body={"texts": [PERSONAL]}).json()["predictions"][0]
    (record,) = kept(folder, 1)
    assert answer["entities"]
    assert record["entities"] == [
        {name: entity[name] for name in ("label", "start", "end", "score")} for entity in answer["entities"]
    ]
    assert "anna" not in json.dumps(record)
    assert client.post(FEEDBACK, json_body={"id": "1", "label": "O"}).status == 404


def test_what_the_model_reads_is_no_other(recording, serve, package):
    texts = {"texts": [PERSONAL]}
    assert (
        recording.post(PREDICT, json_body=texts).json()["predictions"]
        == serve(package).post(PREDICT, json_body=texts).json()["predictions"]
    )


def test_explanations_are_not_recorded(recording, folder, key_file):
    key = keys.add(key_file, "why", ["explain"])
    assert recording.post("/v1/explain", json_body={"texts": ["a film"]}, headers={"x-api-key": key}).status == 200
    recording._app._runtime.records.close()
    assert kept(folder, 0) == []


# Which are kept


def test_the_sample_is_a_share_whatever_ids_a_client_chooses(serve, make_package, tmp_path, folder):
    made = make_package(tmp_path / "p", serve=ServeOptions(records=RecordOptions(share=0.25)))
    client = serve(made.path)
    for _ in range(8):
        client.post(PREDICT, json_body={"texts": TEXTS * 50}, headers={"x-request-id": "chosen"})
    client._app._runtime.records.close()
    places = [record["index"] for record in kept(folder)]
    assert 130 < len(places) < 270
    assert max(Counter(places).values()) < 8  # neither the id nor the place in a request decides


def test_what_is_not_in_the_sample_is_nowhere_on_disk(serve, make_package, tmp_path, folder):
    made = make_package(tmp_path / "p", serve=ServeOptions(records=RecordOptions(share=1e-9)))
    client = serve(made.path)
    reply = client.post(PREDICT, json_body=BODY)
    said = client.post(FEEDBACK, json_body={"id": reply.headers["x-request-id"], "label": "positive"})
    assert said.json() == {"recorded": False}
    client._app._runtime.records.close()
    assert list(folder.iterdir()) == []


# Feedback


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "joy"}, "one of the 2 of this model"),
        ({"label": None}, "string"),
        ({"id": "../x"}, "pattern"),
        ({"id": ""}, "pattern"),
        ({"id": "a" * 65}, "pattern"),
        ({"id": "a\n"}, "pattern"),
        ({"index": -1}, "greater than or equal to 0"),
        ({"index": 256}, "less than 256"),
        ({"comment": "a" * 2001}, "at most 2000 characters"),
        ({"text": "a"}, "Extra inputs"),
    ],
)
def test_feedback_that_does_not_fit(recording, changes, message):
    answer = recording.post(FEEDBACK, json_body={"id": "1", "label": "positive", **changes})
    assert_problem(answer, 422, "does not fit")
    assert message in answer.json()["errors"][0]["message"]


def test_feedback_is_kept_with_its_comment_masked(recording, folder):
    asked = recording.post(PREDICT, json_body=BODY).headers["x-request-id"]
    body = {"id": asked, "index": 1, "label": "negative", "comment": PERSONAL}
    answer = recording.post(FEEDBACK, json_body=body)
    assert (answer.status, answer.json()) == (200, {"recorded": True})
    said = kept(folder, 3)[2]
    assert {name: said[name] for name in ("kind", "id", "index", "client", "label", "comment")} == {
        "kind": "feedback",
        "id": asked,
        "index": 1,
        "client": "alice",
        "label": "negative",
        "comment": MASKED,
    }


def test_feedback_is_kept_on_recorded_answers_of_the_same_client_only(recording, folder, key_file):
    asked = recording.post(PREDICT, json_body=BODY).headers["x-request-id"]
    mallory = {"x-api-key": keys.add(key_file, "mallory")}
    refused = [
        ({"id": "never-was"}, {}),
        ({"id": asked, "index": 2}, {}),
        ({"id": asked}, mallory),
        ({"id": asked}, {**mallory, "x-request-id": asked}),
    ]
    for body, headers in refused:
        answer = recording.post(FEEDBACK, json_body={"label": "positive", **body}, headers=headers)
        assert (answer.status, answer.json()) == (200, {"recorded": False})
    recording._app._runtime.records.close()
    assert [record["kind"] for record in kept(folder)] == ["prediction"] * 2


def test_answers_are_forgotten_by_the_client_that_has_most(monkeypatch):
    monkeypatch.setattr(records, "MAX_REMEMBERED_ANSWERS", 1000)
    monkeypatch.setattr(records, "FORGOTTEN_AT_ONCE", 10)
    answers = records.RecordedAnswers()
    for number in range(50):
        answers.add("alice", f"a{number}", 0)
    for number in range(20_000):
        answers.add("mallory", f"m{number}", 0)
    assert all(answers.contains("alice", f"a{number}", 0) for number in range(50))
    assert answers.contains("mallory", "m19999", 0)
    assert not answers.contains("mallory", "m0", 0)
    assert 900 < sum(answers.contains("mallory", f"m{number}", 0) for number in range(20_000)) <= 950


def test_feedback_is_described(recording, key_file):
    key = keys.add(key_file, "reader", ["docs"])
    content = recording.get("/docs.json", headers={"x-api-key": key}).json()
    assert "FeedbackRequest" in json.dumps(content["paths"][FEEDBACK]["post"]["requestBody"])
    assert "recorded" in content["components"]["schemas"]["FeedbackResponse"]["properties"]


# In nobody's way, and bounded


def test_a_disk_that_does_not_answer_holds_up_nobody(recording, folder, monkeypatch):
    released = threading.Event()
    write = RecordFiles.write

    def wait(self, line, client):
        assert released.wait(20)
        write(self, line, client)

    monkeypatch.setattr(RecordFiles, "write", wait)
    body = {"texts": TEXTS * 50}
    start = time.perf_counter()
    for _ in range(6):
        assert recording.post(PREDICT, json_body=body, headers={"x-request-id": "1"}).status == 200
    seconds = time.perf_counter() - start
    last = recording.post(FEEDBACK, json_body={"id": "1", "label": "positive"})
    assert_problem(last, 503, "faster than it can be written")
    released.set()
    written = kept(folder, MAX_WAITING_RECORDS + 1)  # and the one that was being written
    found = metrics(recording)
    assert found["deploykit_records_written_total"] == len(written)
    assert found["deploykit_records_dropped_total"] == 600 + 1 - len(written)
    assert seconds < 10


def test_a_full_disk_loses_records_and_nothing_else(recording, folder, monkeypatch, caplog):
    """Half of a line is written and then the disk is full, as the system call does it."""
    real, full = os.write, [True]

    def short(file, data):
        if full[0] and threading.current_thread().name == "records":
            return real(file, data[: len(data) // 2])
        return real(file, data)

    monkeypatch.setattr(os, "write", short)
    for _ in range(3):
        assert recording.post(PREDICT, json_body=BODY).status == 200
    end = time.monotonic() + 10
    while metrics(recording)["deploykit_records_dropped_total"] < 6 and time.monotonic() < end:
        time.sleep(0.01)
    assert metrics(recording)["deploykit_records_dropped_total"] == 6
    full[0] = False
    recording.post(PREDICT, json_body=BODY)
    assert [record["index"] for record in kept(folder, 2)] == [0, 1]  # no half line before them
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said == [f"records are dropped, because they cannot be written: {os.strerror(errno.ENOSPC)}"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")  # noqa: PTH110
def test_a_device_without_room(tmp_path):
    files = RecordFiles(tmp_path, 1000)
    files.write(b"x")
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.symlink_to("/dev/full")
    files._sizes = lambda: defaultdict(dict, {mark: {name: 1} for mark, name in files._current.items()})
    with pytest.raises(OSError, match="No space left"):
        files.write(b"x" * 10)


def test_a_folder_that_goes_away_is_survived(recording, folder):
    folder.rmdir()
    assert recording.post(PREDICT, json_body=BODY).status == 200
    end = time.monotonic() + 10
    while metrics(recording)["deploykit_records_dropped_total"] < 2 and time.monotonic() < end:
        time.sleep(0.01)
    folder.mkdir()
    recording.post(PREDICT, json_body=BODY)
    kept(folder, 2)


def test_a_record_that_is_too_long_is_dropped(recording, folder):
    recording.post(PREDICT, json_body={"texts": ["a " * MAX_RECORD_CHARACTERS, "a film"]})
    assert [record["index"] for record in kept(folder, 1)] == [1]
    assert metrics(recording)["deploykit_records_dropped_total"] == 1


def test_what_waits_is_written_when_the_service_stops(recording, folder):
    recording.post(PREDICT, json_body={"texts": TEXTS * 50})
    recording._app._runtime.close()
    kept(folder, 100)


def test_no_client_pushes_out_the_records_of_others(tmp_path):
    most = 100_000
    files = RecordFiles(tmp_path, most)

    def lines_of(client):
        return [line for file in tmp_path.iterdir() for line in file.read_bytes().splitlines() if client in line]

    for number in range(50):
        files.write(f"alice {number:04}".encode().ljust(99, b"x") + b"\n", "alice")
    for number in range(5000):
        files.write(f"mallory {number:04}".encode().ljust(199, b"x") + b"\n", "mallory")
    assert len(lines_of(b"alice")) == 50
    assert len(lines_of(b"mallory")) > 350  # what room there is, is used
    for number in range(1000):  # and who comes late has a share as well
        files.write(f"bob {number:04}".encode().ljust(199, b"x") + b"\n", "bob")
    assert len(lines_of(b"alice")) == 50
    assert len(lines_of(b"bob")) > 150
    assert sorted(lines_of(b"bob"))[-1].startswith(b"bob 0999")
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= most


def test_many_clients_leave_few_files_and_use_all_of_the_room(tmp_path):
    most, clients = 200_000, 300
    files = RecordFiles(tmp_path, most)
    for number in range(3000):
        files.write(f"{number % clients:03} {number:05}".encode().ljust(99, b"x") + b"\n", f"client {number % clients}")
        assert number % 500 or sum(file.stat().st_size for file in tmp_path.iterdir()) <= most
    assert len(list(tmp_path.iterdir())) <= record_files.MAX_FILES
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > most * 0.5


@pytest.mark.parametrize("writers", [1, 2])
def test_files_never_hold_more_than_they_may_and_the_oldest_go(tmp_path, writers):
    most = 8000
    several = [RecordFiles(tmp_path, most) for _ in range(writers)]
    for number in range(500):
        line = f"{number:04}".encode().ljust(30 + number % 500, b"x") + b"\n"
        several[number % writers].write(line)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= most
    held = sorted(int(line[:4]) for file in tmp_path.iterdir() for line in file.read_bytes().splitlines())
    assert held[-1] == 499
    assert held == list(range(held[0], 500)) or writers > 1
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > most * 0.7


def test_a_line_that_has_no_room_costs_no_other(tmp_path):
    files = RecordFiles(tmp_path, 1000)
    files.write(b"x" * 100)
    with pytest.raises(OSError, match="too large"):
        files.write(b"x" * 1001)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 100


def test_many_starts_leave_few_files(tmp_path):
    for _ in range(record_files.MAX_FILES + 20):
        RecordFiles(tmp_path, 1_000_000).write(b"{}\n")
    assert len(list(tmp_path.iterdir())) <= record_files.MAX_FILES


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(b"x" * 2000)
    files = RecordFiles(tmp_path, 1000)
    for _ in range(100):
        files.write(b"x" * 50)
    assert (tmp_path / "mine.jsonl").stat().st_size == 2000


def test_the_manifest_carries_what_the_recipe_says(recording_package):
    assert artifact.Artifact.load(recording_package.path).manifest.serve.records == RecordOptions(share=1, megabytes=1)


def test_threads_may_add_answers_at_once(monkeypatch):
    monkeypatch.setattr(records, "MAX_REMEMBERED_ANSWERS", 200)
    monkeypatch.setattr(records, "FORGOTTEN_AT_ONCE", 10)
    answers, interval = records.RecordedAnswers(), sys.getswitchinterval()

    def work(name):
        for number in range(3000):
            answers.add(f"{name}{number % 50}", f"r{number}", 0)

    sys.setswitchinterval(1e-6)  # seconds: threads meet in the middle of a step
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work, name) for name in "abcd"]:
                done.result()
    finally:
        sys.setswitchinterval(interval)
    added = [(f"{name}{number % 50}", f"r{number}") for name in "abcd" for number in range(3000)]
    assert 200 - 10 <= sum(answers.contains(client, request, 0) for client, request in added) <= 200
