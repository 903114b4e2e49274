"""A service for images, alone and with texts, asked by other clients as they are, by our own, and on the page."""

import json
import subprocess
import sys
from types import SimpleNamespace

import httpx
import pytest
from pages import too_wide, violations
from pictures import data_url, encoded, noise, painted, write_package
from task_graphs import TOLERANCE, close
from test_launch import ask, environ
from test_task_clients import hub, picture  # noqa: F401  fixtures

from deploykit.client import Client
from deploykit.errors import ServiceError
from deploykit.serving import launch
from deploykit.serving.access import keys

TEXT = "a great film"


@pytest.fixture(scope="module", params=["alone", "with a text"])
def service(request, make_package, tmp_path_factory):
    """A process that serves images; one for all tests."""
    folder, with_text = tmp_path_factory.mktemp("images"), request.param == "with a text"
    package = write_package(make_package, folder / "package", with_text)
    key = keys.add(folder / "keys.json", "alice", keys.SCOPES)
    image = folder / "red.png"
    image.write_bytes(painted("red", 1))
    with launch.running_service(package.path, folder / "keys.json", environ=environ(folder)) as url:
        yield SimpleNamespace(url=url, key=key, image=image, text={"text": TEXT} if with_text else {}, folder=folder)


def predicted(service, *images):
    """What the service's own route answers."""
    inputs = [{"image": data_url(image), **service.text} for image in images or [service.image.read_bytes()]]
    status, text = ask(f"{service.url}/v1/predict", service.key, {"inputs": inputs})
    assert status == 200, text
    return json.loads(text)["predictions"]


def test_the_answers_are_those_that_the_graph_gives(service):
    red, blue = predicted(service, painted("red"), painted("blue"))
    assert red["scores"]["red"] > blue["scores"]["red"]
    if not service.text:
        assert (red["label"], blue["label"]) == ("red", "blue")
    assert red["tokens"] == 17 + 5 * bool(service.text)
    status, text = ask(f"{service.url}/v1/model", service.key)
    about = json.loads(text)
    assert (status, about["fields"], about["files"]) == (200, ["image", *service.text], ["image"])


def test_the_client_of_hugging_face_classifies_files_and_bytes(service, hub):  # noqa: F811
    client = hub.InferenceClient(model=f"{service.url}/models/tiny", token=service.key)
    if service.text:  # it cannot send one
        with pytest.raises(hub.errors.HfHubHTTPError, match="422"):
            client.image_classification(service.image)
        return
    (ours,) = predicted(service)
    for image in (service.image, str(service.image), service.image.read_bytes()):
        found = client.image_classification(image)
        assert {part.label: pytest.approx(part.score, abs=TOLERANCE) for part in found} == ours["scores"]
    assert [part.label for part in client.image_classification(service.image, top_k=1)] == [ours["label"]]


TRITON = """
import base64, json, sys
import numpy as np
import tritonclient.http as triton

address, key, image, texts = sys.argv[1], sys.argv[2], open(sys.argv[3], "rb").read(), sys.argv[4:]
client, headers = triton.InferenceServerClient(address), {"authorization": "Bearer " + key}
metadata = client.get_model_metadata("tiny", headers=headers)
for binary in (False, True):
    values = {"image": image if binary else base64.b64encode(image).decode(), "text": "".join(texts)}
    inputs = []
    for described in metadata["inputs"]:
        inputs.append(triton.InferInput(described["name"], [2], described["datatype"]))
        inputs[-1].set_data_from_numpy(np.array([values[described["name"]]] * 2, dtype=object), binary_data=binary)
    answer = client.infer("tiny", inputs, headers=headers)
    print(json.dumps([json.loads(text) for text in answer.as_numpy("answer")]))
"""


def test_the_client_of_triton_sends_images_as_they_are_or_in_base64(service):
    pytest.importorskip("tritonclient")
    address = service.url.removeprefix("http://")
    command = [sys.executable, "-c", TRITON, address, service.key, str(service.image), *service.text.values()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    expected = predicted(service, *[service.image.read_bytes()] * 2)
    assert [close(json.loads(line), expected) for line in ended.stdout.splitlines()] == [True, True]


def test_our_own_client_takes_paths_and_bytes(service, tmp_path):
    (ours,) = predicted(service)
    with Client(service.url, service.key) as client:
        for image in (service.image, service.image.read_bytes()):
            (answer,) = client.predict(inputs=[{"image": image, **service.text}])
            assert answer.label == ours["label"]
            assert answer.scores == pytest.approx(ours["scores"], abs=TOLERANCE)
        with pytest.raises(ServiceError, match="damaged"):
            client.predict(inputs=[{"image": service.image.read_bytes()[:50], **service.text}])


def test_a_form_gives_the_answers_of_its_images(service):
    images = [painted("red", 1), encoded(noise(40, 30), "JPEG"), encoded(noise(30, 40), "WEBP")]
    files = [("image", (f"{number}.bin", image)) for number, image in enumerate(images)]
    texts = {name: [text] * 3 for name, text in service.text.items()}
    headers = {"authorization": f"Bearer {service.key}"}
    answer = httpx.post(f"{service.url}/v1/predict", files=files, data=texts, headers=headers)
    assert answer.status_code == 200, answer.text
    assert close(answer.json()["predictions"], predicted(service, *images))
    odd = httpx.post(f"{service.url}/v1/predict", files=files, data={"text": TEXT}, headers=headers)
    assert (odd.status_code, "3 images and 1 texts" in odd.text) == (422, True)
    other = httpx.post(f"{service.url}/v1/predict", files=[("photo", ("a", b"x"))], headers=headers)
    assert (other.status_code, "image and text" in other.text) == (400, True)
    none = httpx.post(f"{service.url}/v1/predict", files=[("text", (None, TEXT))], headers=headers)
    assert none.status_code == 422


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_page_takes_an_image(service, visit, picture, scheme, width):  # noqa: F811
    page = visit(service, service.key, scheme, width)
    assert page.locator("#first").is_visible() == bool(service.text)
    assert "at most 8 MiB" in page.locator("#hint").inner_text()
    page.get_by_role("button", name="Predict").click()
    assert page.locator("#image-fault").inner_text() == "Choose an image first."
    page.get_by_label("Image").set_input_files(service.image)
    if service.text:
        page.get_by_label("Text").fill(TEXT)
    page.get_by_role("button", name="Predict").click()
    page.locator("#answer").wait_for()
    (ours,) = predicted(service)
    assert page.locator("#prediction .verdict strong").inner_text() == ours["label"]
    assert page.locator("#preview img").evaluate("image => image.naturalWidth") == 20
    assert not page.locator("#why").is_visible()
    assert not too_wide(page)
    assert violations(page) == []
    picture(page, f"images-{'text' if service.text else 'alone'}-{scheme}-{width}")


def test_the_description_names_forms_and_images(service):
    status, text = ask(f"{service.url}/docs.json", service.key)
    content = json.loads(text)["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert (status, list(content)[:3]) == (200, ["application/json", "multipart/form-data", "image/png"])
    infer = json.loads(text)["paths"]["/v2/models/tiny/infer"]["post"]["requestBody"]["content"]
    assert list(infer) == ["application/json"]
