"""The description of the API, and a service that is asked by it."""

import subprocess
import sys

import pytest
from asgi import BODY, Client
from test_check import ROUTES
from test_launch import environ

from deploykit.artifact import RecordOptions, ServeOptions
from deploykit.serving import launch
from deploykit.serving.access import keys
from deploykit.serving.service import build

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    *("negative_data_rejection", "unsupported_method", "ignored_auth"),
)


@pytest.fixture
def docs(key_file):
    return keys.add(key_file, "docs", keys.SCOPES)


@pytest.fixture
def content(serve, make_package, docs, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_RECORDS", str(tmp_path / "records"))
    package = make_package(tmp_path / "p", serve=ServeOptions(records=RecordOptions())).path
    return serve(package).get("/docs.json", headers={"x-api-key": docs}).json()


def test_every_route_is_described(content):
    expected = {path: method.lower() for path, (method, _) in ROUTES.items() if path != "/"}
    assert {path: "".join(item) for path, item in content["paths"].items()} == expected
    for path, (method, scope) in ROUTES.items():
        if path in content["paths"]:
            operation = content["paths"][path][method.lower()]
            assert operation["security"] == ([{"bearer": []}, {"key": []}] if scope else []), path
            assert ("requestBody" in operation) == (method == "POST")
            assert {"401", "403", "429"} <= set(operation["responses"]) or not scope


def test_problems_are_described_as_they_are(serve, package, content, docs):
    operation = content["paths"]["/v1/predict"]["post"]
    schemas = content["components"]["schemas"]
    for status, response in operation["responses"].items():
        if status != "200":
            assert response["content"]["application/problem+json"]["schema"]["$ref"].endswith("/ProblemDetails")
    found = serve(package).post("/v1/predict", json_body={"texts": [1]}).json()
    assert set(found) == set(schemas["ProblemDetails"]["properties"])
    assert set(found["errors"][0]) == set(schemas["Mistake"]["properties"])


def test_what_may_be_null_is_described_so(content):
    label = content["components"]["schemas"]["ExplainRequest"]["properties"]["label"]
    assert {"type": "null"} in label["anyOf"]


def test_without_access_control_no_keys_are_described(package, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_AUTH", "off")
    with Client(build(package).to_asgi()) as client:
        operation = client.get("/docs.json").json()["paths"]["/v1/predict"]["post"]
        assert client.post("/v1/predict", json_body=BODY).status == 200
    assert operation["security"] == []
    assert "401" not in operation["responses"]


def test_schemathesis_finds_nothing(package, key_file, docs, tmp_path):
    """Requests made of the description, right ones and wrong ones, and answers held against it."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", "--checks", ",".join(CHECKS)]
    options = ["--max-examples", "15", "--seed", "1", "--phases", "examples,coverage,fuzzing", "--header"]
    with launch.running_service(package, key_file, environ=environ(tmp_path)) as url:
        ended = subprocess.run(
            [*command, *options, f"X-API-Key: {docs}", f"{url}/docs.json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert "No issues found" in ended.stdout
