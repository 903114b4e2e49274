"""Who gets in where: every route, asked with every kind of key."""

from datetime import UTC, datetime, timedelta

import pytest
from asgi import BODY

from deploykit.serving.access import keys

ROUTES = {  # path: method, the scope that opens it
    "/v1/predict": ("POST", "predict"),
    "/v2/models/tiny/infer": ("POST", "predict"),
    "/models/tiny": ("POST", "predict"),
    "/v1/explain": ("POST", "explain"),
    "/v1/feedback": ("POST", "predict"),
    "/v2": ("GET", "predict"),
    "/v2/models/tiny": ("GET", "predict"),
    "/v1/model": ("GET", "predict"),
    "/metrics": ("GET", "metrics"),
    "/docs.json": ("GET", "docs"),
    "/schema.json": ("GET", "docs"),
    "/": ("GET", None),
    "/livez": ("GET", None),
    "/readyz": ("GET", None),
    "/healthz": ("GET", None),
    "/v2/health/live": ("GET", None),
    "/v2/health/ready": ("GET", None),
    "/v2/models/tiny/ready": ("GET", None),
    "/ui": ("GET", None),
    "/ui/style.css": ("GET", None),
    "/ui/app.js": ("GET", None),
    "/ui/answers.js": ("GET", None),
    "/ui/card.js": ("GET", None),
}
BODIES = {
    "/v1/predict": BODY,
    "/v2/models/tiny/infer": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a film"]}]},
    "/models/tiny": {"inputs": "a film"},
    "/v1/explain": {"texts": ["a film"]},
    "/v1/feedback": {"id": "1", "label": "positive"},
}
PROBLEM_REASONS = {
    "none": "auth_missing",
    "malformed": "auth_invalid",
    "unknown": "auth_invalid",
    "wrong secret": "auth_invalid",
    "expired": "auth_expired",
    "early": "auth_early",
    "disabled": "auth_disabled",
    "revoked": "auth_invalid",
    "other scopes": "auth_scope",
}
RIGHT = ("right", "right as bearer", "every scope", "one of two", "rotated", "rotated away, still valid")


@pytest.fixture
def texts(key_file):
    """The keys of every kind, for a scope."""

    def made(scope):
        now, day = datetime.now(UTC), timedelta(days=1)
        right = keys.add(key_file, "right", [scope])
        found = {
            "none": None,
            "malformed": "dk_not-a-key",
            "unknown": f"dk_{'0' * 8}_{'a' * 43}",
            "wrong secret": right[:-2] + ("aa" if right[-2:] != "aa" else "bb"),
            "expired": keys.add(key_file, "expired", [scope], expires=now - day),
            "early": keys.add(key_file, "early", [scope], not_before=now + day),
            "disabled": keys.add(key_file, "disabled", [scope]),
            "revoked": keys.add(key_file, "revoked", [scope]),
            "other scopes": keys.add(key_file, "other", [name for name in keys.SCOPES if name != scope]),
            "right": right,
            "right as bearer": right,
            "every scope": keys.add(key_file, "all", keys.SCOPES),
            "one of two": keys.add(key_file, "two", [scope]),
            "rotated away, still valid": keys.add(key_file, "old", [scope], expires=now + day),
        }
        keys.set_disabled(key_file, "disabled", disabled=True)
        keys.revoke(key_file, "revoked")
        found["rotated"] = keys.rotate(key_file, found["rotated away, still valid"][3:11])
        return found

    return made


@pytest.mark.parametrize("path", ROUTES)
def test_every_kind_of_key_at_every_route(
    path, serve, recording_package, texts, key_file, capfd, log_lines, monkeypatch, tmp_path
):
    method, scope = ROUTES[path]
    given = texts(scope or "predict")
    monkeypatch.setenv("DEPLOYKIT_RECORDS", str(tmp_path / "records"))
    client, cells = serve(recording_package.path), 0
    assert set(given) == {*PROBLEM_REASONS, *RIGHT}
    for kind, text in given.items():
        header = (
            {"authorization": f"Bearer {text}", "x-api-key": None} if kind == "right as bearer" else {"x-api-key": text}
        )
        ask = client.post if method == "POST" else client.get
        answer = ask(path, **({"json_body": BODIES[path]} if method == "POST" else {}), headers=header)
        (line,) = (found for found in log_lines(capfd.readouterr().out) if found["logger"] == "deploykit.access")
        if scope is None or kind in RIGHT:
            assert answer.status == 200, (path, kind)
            assert line["client"] == "none" or scope
        else:
            assert answer.status == (403 if kind == "other scopes" else 401), (path, kind)
            assert answer.headers["content-type"] == "application/problem+json"
            assert ("www-authenticate" in answer.headers) == (answer.status == 401)
            reason = f'deploykit_rejected_total{{reason="{PROBLEM_REASONS[kind]}"}}'
            assert reason.encode() in client._app._runtime.page()
        assert text is None or text.encode() not in answer.content
        assert text is None or text not in str(line)
        cells += 1
    assert cells == 15  # of 360


def test_the_order_of_keys_in_the_file_and_the_headers_does_not_matter(client, alice):
    for headers in ({"authorization": f"Bearer {alice}"}, {"authorization": f"bearer  {alice}"}, {"x-api-key": alice}):
        assert client.post("/v1/predict", json_body=BODY, headers={"x-api-key": None, **headers}).status == 200
    in_query = client.post(f"/v1/predict?key={alice}", json_body=BODY, headers={"x-api-key": None})
    assert in_query.status == 401  # a query stands in the logs of proxies
