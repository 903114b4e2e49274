"""What a service does with images besides answering: where it decodes them, and what it keeps."""

import json
import threading

import pytest
from pictures import data_url, painted, write_package

from deploykit import images
from deploykit.artifact import RecordOptions, ServeOptions
from deploykit.images import decoding


@pytest.fixture
def threads(monkeypatch):
    """The names of the threads that decode images."""
    names, decode = [], decoding.decode

    def noted(data):
        names.append(threading.current_thread().name)
        return decode(data)

    monkeypatch.setattr(decoding, "decode", noted)
    return names


def test_images_are_decoded_once_in_the_tokenizers_thread_however_small(serve, make_package, tmp_path, threads):
    client = serve(write_package(make_package, tmp_path / "package").path)
    threads.clear()
    body = {"inputs": [{"image": data_url(painted(colour))} for colour in ("red", "blue")]}
    assert client.post("/v1/predict", json_body=body).status == 200
    assert len(threads) == 2
    assert all(name.startswith("tokenizer") for name in threads)


def test_an_image_over_the_limit_is_refused_with_the_limit(serve, make_package, tmp_path):
    client = serve(write_package(make_package, tmp_path / "package").path)
    large = painted("red") + bytes(images.MAX_BYTES)
    answer = client.post("/v1/predict", content=large, headers={"content-type": "image/png"})
    assert (answer.status, "at most 8388608 are read" in answer.text) == (422, True)


def test_images_are_never_recorded(serve, make_package, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_RECORDS", str(tmp_path / "records"))
    options = ServeOptions(records=RecordOptions(share=1, megabytes=1), redact=True, max_body_bytes=12 * 2**20)
    package = write_package(make_package, tmp_path / "package", with_text=True, serve=options)
    client, body = serve(package.path), {"image": data_url(painted("red")), "text": "write to anna@example.org ."}
    assert client.post("/v1/predict", json_body={"inputs": [body]}).status == 200
    client._app._runtime.records.close()  # waits until all are written
    (file,) = (tmp_path / "records").rglob("*.jsonl")
    record = json.loads(file.read_text())
    assert record["text"].startswith("write to xxxx@")
    assert "image" not in record
    assert record["label"] in ("red", "blue")
