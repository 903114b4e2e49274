"""What other libraries may change without a word: a service that does not find it refuses to start, with advice."""

import re
import tomllib
from pathlib import Path

import bentoml
import prometheus_client
import pytest
import uvicorn.config
from _bentoml_sdk import Service
from bentoml._internal.server.http import traffic
from bentoml.exceptions import BentoMLConfigException
from opentelemetry.instrumentation import asgi as tracing
from starlette.applications import Starlette
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deploykit.errors import LibraryError
from deploykit.serving import patches, service
from deploykit.serving.telemetry.metrics import Metrics

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
PARTS = [
    (uvicorn.config, "HTTP_PROTOCOLS", "uvicorn"),
    (httptools_impl, "HttpToolsProtocol", "uvicorn"),
    *((HttpToolsProtocol, name, "uvicorn") for name in patches.USED_METHODS if name in vars(HttpToolsProtocol)),
    (Service, "to_asgi", "bentoml"),
    (Service, "doc", "bentoml"),
    (traffic, "TimeoutMiddleware", "bentoml"),
    (tracing, "OpenTelemetryMiddleware", "bentoml"),
]


def advice(library):
    return re.escape(f"pip install '{patches.REQUIREMENTS[library]}'")


@pytest.mark.parametrize(("owner", "name", "library"), PARTS, ids=[name for _, name, _ in PARTS])
def test_a_part_that_is_missing_keeps_a_service_from_starting(package, monkeypatch, owner, name, library):
    monkeypatch.delattr(owner, name)
    with pytest.raises(BentoMLConfigException, match=f"{name}, which this service relies on.*{advice(library)}"):
        service.build(package)


def test_every_part_that_is_changed_is_looked_for():
    own = {name for name in vars(service.connections.Connection) if name in vars(HttpToolsProtocol)}
    assert own <= {*patches.USED_METHODS, "__init__", "__module__", "__doc__"}


def test_another_server_is_noticed(package, monkeypatch):
    monkeypatch.delitem(uvicorn.config.HTTP_PROTOCOLS, "auto")
    with pytest.raises(BentoMLConfigException, match=advice("uvicorn")):
        service.build(package)

    def renamed(self, config, server_state, app_state, _loop=None):
        self.reader = None

    monkeypatch.undo()
    monkeypatch.setattr(HttpToolsProtocol, "__init__", renamed)
    with pytest.raises(BentoMLConfigException, match=r"HttpToolsProtocol.*parser"):
        service.build(package)


@pytest.mark.parametrize("name", service.REPLACED_MIDDLEWARE)
def test_middleware_that_is_not_there_to_be_taken_out(package, alice, key_file, monkeypatch, name):
    monkeypatch.setenv("DEPLOYKIT_KEYS", str(key_file))
    built = service.build(package)
    to_asgi = Service.to_asgi

    def renamed(self, is_main=True):
        app = to_asgi(self, is_main)
        app.user_middleware = [part for part in app.user_middleware if part.cls.__name__ != name]
        return app

    monkeypatch.setattr(Service, "to_asgi", renamed)
    with pytest.raises(BentoMLConfigException, match=f"{name} around its application.*{advice('bentoml')}"):
        built.to_asgi()


def test_a_service_without_the_guard_is_not_made(package, monkeypatch):
    def without_class(*, service_class, **options):
        return bentoml_service(**options)

    bentoml_service = bentoml.service
    monkeypatch.setattr(bentoml, "service", without_class)
    with pytest.raises(BentoMLConfigException, match=f"service_class.*{advice('bentoml')}"):
        service.build(package)


@pytest.mark.parametrize("part", ["_sum", "_buckets", "_upper_bounds"])
def test_histograms_of_another_make(monkeypatch, part):
    init = prometheus_client.Histogram._metric_init

    def renamed(self):
        init(self)
        delattr(self, part)

    monkeypatch.setattr(prometheus_client.Histogram, "_metric_init", renamed)
    with pytest.raises(LibraryError, match=f"Histogram.{part}.*{advice('prometheus-client')}"):
        Metrics(["/"], [])


def test_the_bounds_are_those_of_the_project_and_hold_here():
    asked = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    assert set(patches.REQUIREMENTS.values()) <= set(asked)
    patches.require_parts()
    assert hasattr(Starlette(), "user_middleware")
