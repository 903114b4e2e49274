"""What a service process is told, and what it refuses to be told."""

import logging

import pytest

from deploykit.artifact import ServeOptions
from deploykit.errors import ArtifactError, InputError
from deploykit.serving import preflight, settings
from deploykit.serving.access import keys


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DEPLOYKIT_AUTH", "maybe", "DEPLOYKIT_AUTH must be on or off, got 'maybe'"),
        ("DEPLOYKIT_METRICS_PUBLIC", "2", "DEPLOYKIT_METRICS_PUBLIC must be on or off, got '2'"),
        ("DEPLOYKIT_THREADS", "0", "DEPLOYKIT_THREADS must be a whole number of at least 1, got '0'"),
        ("DEPLOYKIT_THREADS", "many", "DEPLOYKIT_THREADS must be a whole number of at least 1, got 'many'"),
    ],
)
def test_values_that_make_no_sense(package, name, value, message):
    with pytest.raises(InputError, match=message):
        settings.load_settings(package, {name: value})


def test_a_directory_that_is_no_package(tmp_path, tiny_artifact):
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        settings.load_settings(tmp_path, {})
    graph = tiny_artifact(tmp_path / "onnx")
    with pytest.raises(ArtifactError, match="kind 'onnx', expected a package"):
        settings.load_settings(graph.path, {})


def test_access_control_needs_a_key_file_with_a_key(package, key_file, alice):
    found, _ = settings.load_settings(package, {"DEPLOYKIT_KEYS": str(key_file.with_name("none.json"))})
    with pytest.raises(InputError, match=r"none\.json.*deploykit keys add NAME.*DEPLOYKIT_AUTH=off"):
        preflight.require_keys(found)
    found, _ = settings.load_settings(package, {"DEPLOYKIT_KEYS": str(key_file)})
    preflight.require_keys(found)
    keys.revoke(key_file, "alice")
    with pytest.raises(InputError, match="holds no key"):
        preflight.require_keys(found)


def test_access_control_is_on_unless_switched_off(package):
    assert settings.load_settings(package, {})[0].keys == settings.default_key_file()
    assert settings.load_settings(package, {"DEPLOYKIT_AUTH": "off"})[0].keys is None


def test_a_misspelt_variable_is_pointed_out(package, caplog):
    with caplog.at_level(logging.WARNING):
        settings.load_settings(package, {"DEPLOYKIT_KEY": "x", "DEPLOYKIT_SERVICE_HOST": "10.0.0.1"})
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("the environment variable DEPLOYKIT_KEY has no meaning")
    assert "did you mean 'KEYS'" in message


def test_the_manifest_the_environment_and_the_defaults(make_package, tmp_path):
    made = make_package(tmp_path / "p", serve=ServeOptions(max_texts=3, threads=5, timeout_s=2.5))
    found, artifact = settings.load_settings(made.path, {})
    assert (found.max_texts, found.cores, found.timeout_s) == (3, 5, 2.5)
    assert artifact.manifest.name == "tiny"
    elsewhere, _ = settings.load_settings(tmp_path, {"DEPLOYKIT_PACKAGE": str(made.path), "DEPLOYKIT_THREADS": "2"})
    assert (elsewhere.package, elsewhere.cores) == (made.path.resolve(), 2)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"}, False),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_SERVICE_NAME": "a"}, False),
    ],
)
def test_when_traces_are_wanted(package, environ, expected):
    assert settings.load_settings(package, environ)[0].traces is expected


def test_an_exporter_that_is_not_there_is_refused(package):
    with pytest.raises(InputError, match="OTEL_TRACES_EXPORTER must be otlp or none, got 'jaeger'"):
        settings.load_settings(package, {"OTEL_TRACES_EXPORTER": "Jaeger"})
    grpc = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(InputError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, got 'grpc'.*4318"):
        settings.load_settings(package, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317", **grpc})
    own = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_TRACES_EXPORTER": "otlp"}
    assert settings.load_settings(package, {**grpc, **own})[0].traces
    assert not settings.load_settings(package, grpc)[0].traces
