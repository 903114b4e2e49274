"""Browsers: who is answered what, and that nothing changes where no origin is named."""

from itertools import product

import pytest
from asgi import BODY, PREDICT, Client, assert_problem, metrics
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from deploykit.artifact import ServeOptions
from deploykit.errors import InputError
from deploykit.serving import settings
from deploykit.serving.access import check, keys
from deploykit.serving.http import cors

PAGE = "https://app.example.org"
ASKS = {"origin": PAGE, "access-control-request-method": "POST", "x-api-key": None}


@pytest.fixture
def browser(serve, package, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CORS_ORIGINS", f" {PAGE}, http://localhost:8080,")
    return serve(package)


def marks(answer):
    return {name for name in answer.headers if name.startswith("access-control-")}


def may_read(answer, origin=PAGE):
    assert answer.headers["vary"] == "Origin"
    assert answer.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in answer.headers
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "server-timing", "retry-after"} <= set(exposed)
    return True


@pytest.mark.parametrize(
    "value",
    [
        "*",
        "null",
        "app.example.org",
        "https://*.example.org",
        "https://app.example.org/",
        "https://app.example.org/page",
        "https://App.example.org",
        "https://user@app.example.org",
        "https://app.example.org:443",
        "http://app.example.org:80",
        "https://app.example.org https://b.example.org",
        "ftp://app.example.org",
        "https://app.example.org\n",
        "https://a..b",
        "https://",
    ],
)
def test_what_is_no_origin_is_refused_before_anything_starts(package, value):
    if value.endswith("\n"):  # blanks around one are let pass, those within are not
        value += "https://b.example.org"
    with pytest.raises(InputError, match=r"DEPLOYKIT_CORS_ORIGINS must be origins as browsers write them"):
        settings.load_settings(package, {"DEPLOYKIT_CORS_ORIGINS": value})


def test_origins_are_read(package):
    def origins(value):
        return settings.load_settings(package, {"DEPLOYKIT_CORS_ORIGINS": value})[0].cors_origins

    given = "https://a.example.org, http://localhost:3000 ,http://127.0.0.1:5173,https://[::1]:8443,https://a:4430"
    assert origins(given) == {one.strip() for one in given.split(",")}
    assert origins("") == origins(" , ") == frozenset()


def test_without_origins_browsers_get_what_everybody_gets(client):
    assert_problem(client.request("OPTIONS", PREDICT, headers=ASKS), 405, "takes POST only")
    answer = client.post(PREDICT, json_body=BODY, headers={"origin": PAGE})
    assert answer.status == 200
    assert marks(answer) == set()
    assert "vary" not in answer.headers


@pytest.mark.parametrize(
    "other", ["https://evil.example.org", "http://app.example.org", f"{PAGE}.evil.org", "null", ""]
)
def test_other_origins_get_nothing(browser, other):
    preflight = browser.request("OPTIONS", PREDICT, headers={**ASKS, "origin": other})
    assert_problem(preflight, 405, "takes POST only")
    answer = browser.post(PREDICT, json_body=BODY, headers={"origin": other})
    assert answer.status == 200
    assert marks(preflight) == marks(answer) == set()
    assert answer.headers["vary"] == "Origin"  # or a cache would give it to a page that may read it


def test_a_preflight_is_answered_without_a_key(browser):
    before = metrics(browser)
    answer = browser.request("OPTIONS", PREDICT, headers=ASKS)
    assert (answer.status, answer.content) == (204, b"")
    assert may_read(answer)
    assert answer.headers["access-control-allow-methods"] == "POST"
    assert answer.headers["access-control-allow-headers"].split(", ") == [
        *("authorization", "content-type", "x-api-key", "x-request-id", "x-request-timeout-ms")
    ]
    assert int(answer.headers["access-control-max-age"]) > 0
    assert "content-length" not in answer.headers
    after = metrics(browser)
    name = f'deploykit_requests_total{{route="{PREDICT}",status="204"}}'
    assert after[name] == before[name] + 1
    read = browser.request("OPTIONS", "/metrics", headers={**ASKS, "access-control-request-method": "GET"})
    assert read.headers["access-control-allow-methods"] == "GET, HEAD"


def test_what_is_no_preflight_is_refused_as_ever(browser):
    asks = {**ASKS, "access-control-request-method": None}
    assert_problem(browser.request("OPTIONS", PREDICT, headers=asks), 405, "takes POST only")
    assert_problem(browser.request("OPTIONS", "/nowhere", headers=ASKS), 404, "no such path")
    assert_problem(browser.request("GET", PREDICT, headers=ASKS), 405, "takes POST only")


def test_a_page_can_read_answers_and_refusals(browser, key_file, monkeypatch):
    monkeypatch.setattr(check, "POLL_S", 0.0)
    slow = {"origin": PAGE, "x-api-key": keys.add(key_file, "slow", requests_per_minute=1)}
    asked = [
        (browser.post(PREDICT, json_body=BODY, headers={"origin": "http://localhost:8080"}), 200),
        (browser.post(PREDICT, json_body=BODY, headers={"origin": PAGE, "x-api-key": None}), 401),
        (browser.get("/nowhere", headers={"origin": PAGE}), 404),
        (browser.post(PREDICT, json_body={}, headers={"origin": PAGE}), 422),
        (browser.post(PREDICT, json_body=BODY, headers={"origin": PAGE, **{f"x-{i}": "" for i in range(64)}}), 431),
        (browser.post(PREDICT, json_body=BODY, headers=slow), 200),
        (browser.post(PREDICT, json_body=BODY, headers=slow), 429),
    ]
    assert [answer.status for answer, _ in asked] == [status for _, status in asked]
    assert may_read(asked[0][0], "http://localhost:8080")
    assert all(may_read(answer) for answer, _ in asked[1:])
    assert "retry-after" in asked[-1][0].headers


def test_a_page_can_read_that_the_service_is_busy(serve, make_package, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CORS_ORIGINS", PAGE)
    client = serve(make_package(tmp_path / "p", serve=ServeOptions(timeout_s=0.2)).path)
    monkeypatch.setattr(client._app._runtime, "fault", "broken")
    answer = client.post(PREDICT, json_body=BODY, headers={"origin": PAGE})
    assert_problem(answer, 503, "not ready")
    assert may_read(answer)


# The same as another implementation says

LISTED = (PAGE, "http://localhost:8080")
ORIGINS = (None, *LISTED, "https://evil.example.org", f"{PAGE}.evil.org", PAGE.upper(), f"{PAGE}/", "null", "*", "")
HEADERS = (None, "content-type", "authorization, content-type", "X-API-Key", "x-other", "content-type,x-other", "*")


@pytest.fixture
def starlette_app():
    """What Starlette's middleware does around one route, told to allow what we allow."""

    async def answer(_):
        return JSONResponse({})

    options = {
        "allow_methods": ["POST"],
        "allow_headers": cors.REQUEST_HEADERS,
        "expose_headers": cors.RESPONSE_HEADERS,
    }
    middleware = Middleware(CORSMiddleware, allow_origins=LISTED, max_age=cors.PREFLIGHT_MAX_AGE_S, **options)
    with Client(Starlette(routes=[Route(PREDICT, answer, methods=["POST"])], middleware=[middleware])) as client:
        yield client


def readable(answer, origin):
    """Whether a browser lets a page of an origin read an answer, without credentials (Fetch, the CORS check)."""
    return answer.headers.get("access-control-allow-origin") in ("*", origin) and origin is not None


def granted(answer, origin, method, headers):
    """Whether a browser sends the request after this answer to its preflight (Fetch, the CORS-preflight fetch)."""
    if not readable(answer, origin) or not 200 <= answer.status < 300:
        return False
    methods = answer.headers.get("access-control-allow-methods", "").split(", ")
    allowed = answer.headers.get("access-control-allow-headers", "").lower().split(", ")
    asked = [name.strip().lower() for name in (headers or "").split(",") if name.strip()]
    return method in (*methods, "GET", "HEAD", "POST") and all(name in allowed for name in asked)


def test_browsers_are_granted_what_the_middleware_of_starlette_grants_them(browser, starlette_app):
    for origin, method, headers in product(ORIGINS, ("POST", "PUT", "DELETE"), HEADERS):
        asked = {"access-control-request-method": method, "access-control-request-headers": headers}
        ours, theirs = (
            app.request("OPTIONS", PREDICT, headers={"origin": origin, "x-api-key": None, **asked})
            for app in (browser, starlette_app)
        )
        verdicts = [granted(answer, origin, method, headers) for answer in (ours, theirs)]
        assert (
            verdicts == [origin in LISTED and method == "POST" and "other" not in str(headers) and headers != "*"] * 2
        )
        assert "access-control-allow-credentials" not in ours.headers
    for origin in ORIGINS:
        ours, theirs = (
            app.post(PREDICT, json_body=BODY, headers={"origin": origin}) for app in (browser, starlette_app)
        )
        assert readable(ours, origin) == readable(theirs, origin) == (origin in LISTED), origin
        assert "Origin" in ours.headers["vary"], "Origin" in theirs.headers["vary"]
        if origin in LISTED:
            exposed = "access-control-expose-headers"
            assert ours.headers[exposed] == theirs.headers[exposed]
