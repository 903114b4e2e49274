"""Our own client and a service as it runs in production."""

import asyncio

import pytest
from test_launch import environ

from deploykit.client import AsyncClient, Client
from deploykit.errors import ServiceError
from deploykit.serving import keys, launch


def test_the_client_and_the_service_understand_each_other(package, tmp_path):
    key_file = tmp_path / "keys.json"
    key = keys.add(key_file, "alice", ["predict", "explain"])
    slow = keys.add(key_file, "slow", requests_per_minute=40)
    with launch.running(package, key_file, environ=environ(tmp_path)) as url:
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
