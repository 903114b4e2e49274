"""Our own client and a service as it runs in production."""

import asyncio

import pytest
from test_launch import environ

from deploykit.client import AsyncClient, Client
from deploykit.data import feedback
from deploykit.errors import ServiceError
from deploykit.serving import launch
from deploykit.serving.access import keys


def test_the_client_and_the_service_understand_each_other(package, tmp_path):
    key_file = tmp_path / "keys.json"
    key = keys.add(key_file, "alice", ["predict", "explain"])
    slow = keys.add(key_file, "slow", requests_per_minute=40)
    with launch.running_service(package, key_file, environ=environ(tmp_path)) as url:
        with Client(url, key) as client:
            assert client.ready()
            first, second = client.predict(["a great film", "weak"])
            assert first.label in ("negative", "positive")
            assert sum(second.scores.values()) == pytest.approx(1, abs=1e-5)
            why = client.explain("a great film", label="negative")
            assert [part.text for part in why.parts] == ["a", "great", "film"]
            assert why.score == pytest.approx(first.scores["negative"], abs=1e-5)
            with pytest.raises(ServiceError, match=r"^422: .*texts") as caught:
                client.predict([])
            assert caught.value.request_id
        with Client(url) as nobody, pytest.raises(ServiceError, match="401: this route needs a key"):
            nobody.predict(["a"])

        async def many():
            async with AsyncClient(url, slow, timeout_s=20) as client:
                return await asyncio.gather(*[client.predict([f"film {index}"]) for index in range(44)])

        assert len(asyncio.run(many())) == 44  # four of them had to wait for the key's limit, and did
    with Client(url, key) as client:
        assert not client.ready()


def test_what_clients_say_of_answers_becomes_labelled_rows(recording_package, tmp_path):
    key_file, folder = tmp_path / "keys.json", tmp_path / "records"
    key = keys.add(key_file, "alice", ["predict"])
    texts = ["a great film", "ask anna@mail.example", "weak"]
    around = environ(tmp_path, DEPLOYKIT_RECORDS=str(folder))
    with launch.running_service(recording_package.path, key_file, environ=around) as url:
        with Client(url, key) as client:
            first, second, _ = client.predict(texts)
            assert first.request == second.request
            assert client.feedback(first, first.label)
            assert client.feedback(second, "positive", comment="my friend bob@mail.example says so")
            wrong = "negative" if second.label == "positive" else "positive"
            with pytest.raises(ServiceError, match="label must be one of the 2"):
                client.feedback(second, "joy")

        async def again():
            async with AsyncClient(url, key) as client:
                return await client.feedback(second, wrong)

        assert asyncio.run(again())
    found = feedback.join(folder)  # after a stop that writes what waits
    assert found.rows == [
        {"text": "a great film", "label": first.label},
        {"text": "ask xxxx@xxxx.xxxxxxx", "label": wrong},
    ]
    assert (found.prediction_counts.total(), found.judged_counts.total(), found.correct_counts.total()) == (3, 2, 1)
    assert not [file for file in folder.iterdir() if b"@mail" in file.read_bytes()]
