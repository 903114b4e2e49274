"""Tokens of an identity provider: what is refused first, with real signatures."""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from asgi import BODY, PREDICT, Client, assert_problem

from deploykit.errors import InputError
from deploykit.serving import settings
from deploykit.serving.access import jwks
from deploykit.serving.access.jwt import TokenChecker
from deploykit.serving.call import LIMIT_NAMES, ClientLimits
from deploykit.serving.problems import Problem
from deploykit.serving.service import build

jwt = pytest.importorskip("jwt")
pytest.importorskip("cryptography")
from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: E402
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: E402

ISSUER, AUDIENCE = "https://login.example", "deploykit"


@pytest.fixture(scope="module")
def private():
    return {
        "rsa": rsa.generate_private_key(65537, 2048),
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "stranger": rsa.generate_private_key(65537, 2048),
    }


def public_set(private, *names):
    """Returns the keys as a provider publishes them."""
    found = []
    for name in names:
        algorithm = jwt.algorithms.ECAlgorithm if name == "ec" else jwt.algorithms.RSAAlgorithm
        found.append({**algorithm.to_jwk(private[name].public_key(), as_dict=True), "kid": name, "use": "sig"})
        found[-1]["alg"] = "ES256" if name == "ec" else "RS256"
    return json.dumps({"keys": found})


@pytest.fixture
def file(private, tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text(public_set(private, "rsa", "ec"))
    return path


@pytest.fixture
def made(private):
    """`made(by, **changes)`: a token that would be taken but for the changes; None takes a claim away."""

    def make(by="rsa", algorithm=None, kid=None, **changes):
        now = time.time()
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "anna", "exp": now + 60, "scope": "predict metrics other"}
        claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        algorithm = algorithm or ("ES256" if by == "ec" else "RS256")
        return jwt.encode(claims, private[by], algorithm=algorithm, headers={"kid": kid or by})

    return make


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def check(file, text, scope="predict"):
    async def body():
        return TokenChecker(str(file), ISSUER, AUDIENCE).check(text, scope)

    return asyncio.run(body())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 1}, "auth_expired"),
        ({"exp": None}, "auth_invalid"),
        ({"nbf": 4e9}, "auth_early"),
        ({"iat": 4e9}, "auth_early"),
        ({"iss": "https://elsewhere.example"}, "auth_invalid"),
        ({"iss": None}, "auth_invalid"),
        ({"aud": "another service"}, "auth_invalid"),
        ({"aud": None}, "auth_invalid"),
        ({"sub": None}, "auth_invalid"),
        ({"by": "stranger", "kid": "rsa"}, "auth_invalid"),
        ({"by": "stranger"}, "auth_invalid"),
        ({"algorithm": "RS512"}, "auth_invalid"),
        ({"kid": "nobody"}, "auth_invalid"),
        ({"scope": None}, "auth_scope"),
        ({"scope": "metrics"}, "auth_scope"),
        ({"scope": ["explain"]}, "auth_scope"),
        ({"scope": "predictions"}, "auth_scope"),
    ],
    ids=str,
)
def test_tokens_that_are_refused(file, made, changes, reason):
    found = check(file, made(**changes))
    assert (found.reason, found.status) == (reason, 403 if reason == "auth_scope" else 401)


@pytest.mark.parametrize("scope", [None, 7, True, {"predict": True}, [7, None]])
def test_scopes_of_other_types_open_nothing(file, private, scope):
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "anna", "exp": now + 60, "scope": scope}
    found = check(file, jwt.encode(claims, private["rsa"], algorithm="RS256", headers={"kid": "rsa"}))
    assert (found.reason, found.status) == ("auth_scope", 403)


def test_signatures_that_anybody_could_make_are_refused(file, made, private):
    head, claims, _ = made().split(".")
    unsigned = jwt.encode({"sub": "anna"}, None, algorithm="none", headers={"kid": "rsa"})
    pem = private["rsa"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    confused = encoded(b'{"alg":"HS256","kid":"rsa"}') + "." + claims  # signed with what everybody knows
    signature = encoded(hmac.new(pem, confused.encode(), hashlib.sha256).digest())
    for text in (f"{head}.{claims}.", unsigned, f"{confused}.{signature}", "ey..", "ey.a.b", "eyJ9.e30.x"):
        assert check(file, text).reason == "auth_invalid", text


@pytest.mark.parametrize("by", ["rsa", "ec"])
@pytest.mark.parametrize("scope", ["predict", ["predict"], "openid predict"])
def test_tokens_that_are_taken(file, made, by, scope):
    found = check(file, made(by, scope=scope))
    assert (found.name, found.key_id, found.requests_per_minute) == ("jwt:anna", "jwt:anna", None)


def test_subjects_are_made_fit_for_logs_and_stay_apart(file, made):
    found = [check(file, made(sub=subject)).name for subject in ("a\nb", "a_b", "c" * 99, "c" * 98, "c" * 40, "a:b")]
    assert [name[:8] for name in found] == ["jwt:a_b:", "jwt:a_b", *["jwt:cccc"] * 3, "jwt:a_b:"]
    assert len(set(found)) == len(found)
    assert all(name.isprintable() and len(name) <= 64 for name in found)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "aa", "kid": "x"}]}']
)
def test_a_file_without_keys_is_refused_at_once(tmp_path, content):
    path = tmp_path / "jwks.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"jwks\.json (holds no set of keys|has no key with an id)"):
        TokenChecker(str(path), ISSUER, AUDIENCE)
    with pytest.raises(InputError, match="cannot be read"):
        TokenChecker(str(tmp_path / "nowhere"), ISSUER, AUDIENCE)


@pytest.fixture
def provider(private):
    """A server that publishes `served["content"]`, and counts how often it was asked."""
    served = {"content": public_set(private, "rsa"), "count": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served["count"] += 1
            data = served["content"].encode()
            if served.get("drip"):
                self.send_response(200)
                self.send_header("content-length", "100000")
                self.end_headers()
                with suppress(OSError):
                    while served["drip"]:
                        self.wfile.write(b" ")
                        time.sleep(0.02)
                return
            if served.get("moved"):
                self.send_response(302)
                self.send_header("location", served["moved"])
            else:
                self.send_response(200 if data else 500)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served["url"] = f"http://127.0.0.1:{server.server_port}/keys"
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(jwks, "RETRY_S", 0.05)


def following(url, scenario):
    """Runs a scenario with the tokens of a provider, which is followed meanwhile; returns how many fetches failed."""

    async def body():
        found = TokenChecker(url, ISSUER, AUDIENCE)
        found.start()
        try:
            await asyncio.wait_for(scenario(found), 30)
        finally:
            found.close()
        return found.failures

    return asyncio.run(body())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def answer(found, text):
    """Returns the name of the client, or the reason of the refusal."""
    try:
        result = found.check(text, "predict")
    except Problem as problem:
        return problem.status
    return getattr(result, "name", None) or result.reason


def test_new_keys_of_a_provider_are_found_and_it_is_not_asked_all_the_time(provider, private, made, monkeypatch):
    monkeypatch.setattr(jwks, "RETRY_S", 2.0)

    async def scenario(found):
        await until(lambda: answer(found, made("rsa")) == "jwt:anna")
        provider["content"] = public_set(private, "ec")
        for _ in range(20):
            assert answer(found, made("ec")) == "auth_invalid"
            await asyncio.sleep(0.005)
        assert provider["count"] == 1  # it was asked a moment ago
        await until(lambda: answer(found, made("ec")) == "jwt:anna")
        assert answer(found, made("rsa")) == "auth_invalid"
        assert provider["count"] == 2

    assert following(provider["url"], scenario) == 0


def test_a_key_that_is_withdrawn_is_refused_without_anybody_asking(provider, private, made, monkeypatch):
    monkeypatch.setattr(jwks, "REFRESH_S", 0.1)

    async def scenario(found):
        await until(lambda: answer(found, made("rsa")) == "jwt:anna")
        provider["content"] = public_set(private, "ec")
        before = provider["count"]
        await until(lambda: provider["count"] > before + 1)
        assert answer(found, made("rsa")) == "auth_invalid"

    following(provider["url"], scenario)


def test_a_provider_that_is_away_takes_no_key_with_it(provider, made, monkeypatch):
    monkeypatch.setattr(jwks, "REFRESH_S", 0.1)

    async def scenario(found):
        await until(lambda: answer(found, made("rsa")) == "jwt:anna")
        provider["content"] = ""
        await until(lambda: found.failures >= 2)
        assert answer(found, made("rsa")) == "jwt:anna"

    assert following(provider["url"], scenario) >= 2


BAD_ANSWERS = {
    "error": {"content": ""},
    "page": {"content": "<html>"},
    "no keys": {"content": '{"keys": []}'},
    "too long": {"content": " " * (jwks.MAX_KEY_SET_BYTES + 1)},
    "drops": {"drip": True},
    "moved": {"moved": "http://127.0.0.2:1/keys"},
}


@pytest.mark.parametrize("bad", BAD_ANSWERS)
def test_tokens_wait_for_a_provider_that_answers_otherwise_and_are_taken_then(provider, made, monkeypatch, bad):
    good = provider["content"]
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 1.0)

    async def scenario(found):
        await until(lambda: found.failures)
        assert answer(found, made("rsa")) == 503
        provider.update(content=good, drip=False, moved=None)
        await until(lambda: answer(found, made("rsa")) == "jwt:anna")

    provider.update(BAD_ANSWERS[bad])
    assert following(provider["url"], scenario) >= 1


def test_new_keys_are_found_after_an_answer_that_came_by_drops(provider, private, made, monkeypatch):
    monkeypatch.setattr(jwks, "REFRESH_S", 0.1)
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 1.0)

    async def scenario(found):
        await until(lambda: answer(found, made("rsa")) == "jwt:anna")
        provider["drip"] = True
        await until(lambda: found.failures)
        provider.update(drip=False, content=public_set(private, "ec"))
        await until(lambda: answer(found, made("ec")) == "jwt:anna")

    following(provider["url"], scenario)


def test_a_service_is_ready_while_its_provider_sends_drops(package, key_file, alice, provider, made, monkeypatch):
    provider["drip"] = True
    monkeypatch.setenv("DEPLOYKIT_KEYS", str(key_file))
    for name, value in zip(settings.JWT_VARIABLES, (provider["url"], ISSUER, AUDIENCE), strict=True):
        monkeypatch.setenv(name, value)
    begun = time.monotonic()
    with Client(build(package).to_asgi(), headers={"x-api-key": alice}) as client:
        assert client.get("/readyz").status == 200
        assert time.monotonic() - begun < 5
        refused = client.post(PREDICT, json_body=BODY, headers={"authorization": f"Bearer {made()}"})
        assert_problem(refused, 503, "the identity provider's keys are not here yet")
        assert refused.headers["retry-after"] == "1"
        assert client.post(PREDICT, json_body=BODY).status == 200
        provider["drip"] = False


def test_who_does_not_speak_http_costs_a_failure_and_no_more(made):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"SSH-2.0-hello\r\n")

        async def scenario(found):
            await until(lambda: found.failures)
            assert answer(found, made("rsa")) == 503

        threading.Thread(target=greet, daemon=True).start()
        following(f"http://127.0.0.1:{server.getsockname()[1]}/", scenario)


def test_keys_do_not_come_by_a_redirect(provider, made, caplog):
    provider["moved"] = provider["url"] + "/elsewhere"

    async def scenario(found):
        await until(lambda: found.failures)

    following(provider["url"], scenario)
    assert f"answers 302 and names {provider['moved']}" in caplog.text


def test_a_provider_on_this_machine_is_asked_without_a_proxy(provider, made, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def scenario(found):
        await until(lambda: answer(found, made("rsa")) == "jwt:anna")

    assert following(provider["url"], scenario) == 0


# Limits


def limits_of(file, made, limits, **claims):
    found = TokenChecker(str(file), ISSUER, AUDIENCE, ClientLimits(**limits)).check(made(**claims), "predict")
    return {name: getattr(found, name) for name in LIMIT_NAMES if getattr(found, name) is not None}


@pytest.mark.parametrize(
    ("setting", "claim", "limits"),
    [
        ({}, None, {}),
        ({"requests_per_minute": 60, "concurrency": 4}, None, {"requests_per_minute": 60, "concurrency": 4}),
        ({"requests_per_minute": 60}, {"requests_per_minute": 7}, {"requests_per_minute": 7}),
        ({"requests_per_minute": 60}, {"requests_per_minute": 700}, {"requests_per_minute": 60}),
        ({"concurrency": 4}, {"requests_per_day": 9}, {"concurrency": 4, "requests_per_day": 9}),
        ({"tokens_per_minute": 4}, {"tokens_per_minute": None}, {"tokens_per_minute": 4}),
    ],
)
def test_a_claim_may_lower_what_each_subject_may_ask_for(file, made, setting, claim, limits):
    assert limits_of(file, made, setting, deploykit_limits=claim) == limits


@pytest.mark.parametrize(
    "claim",
    [7, "60", [], {"requests_per_minute": 0}, {"requests_per_minute": "60"}, {"requests": 6}, {"concurrency": True}],
)
def test_a_claim_that_makes_no_sense_is_refused_and_not_taken_for_no_limit(file, made, claim):
    found = check(file, made(deploykit_limits=claim))
    assert (found.status, found.reason) == (401, "auth_invalid")
    assert "deploykit_limits must be an object of whole numbers" in found.detail


def test_holders_of_tokens_are_held_to_the_limits_of_the_settings(package, key_file, alice, file, made, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_KEYS", str(key_file))
    monkeypatch.setenv("DEPLOYKIT_JWT_LIMITS", "requests_per_minute=2, tokens_per_minute=1000")
    for name, value in zip(settings.JWT_VARIABLES, (str(file), ISSUER, AUDIENCE), strict=True):
        monkeypatch.setenv(name, value)

    def statuses(client, **claims):
        headers = {"authorization": f"Bearer {made(**claims)}"}
        return [client.post(PREDICT, json_body=BODY, headers=headers).status for _ in range(3)]

    with Client(build(package).to_asgi()) as client:
        assert statuses(client) == [200, 200, 429]
        assert statuses(client, sub="bert") == [200, 200, 429]  # each has their own
        assert statuses(client, sub="cleo", deploykit_limits={"requests_per_minute": 1}) == [200, 429, 429]
        assert [client.post(PREDICT, json_body=BODY, headers={"x-api-key": alice}).status for _ in range(4)] == [
            200
        ] * 4


def test_a_service_takes_keys_and_tokens(package, key_file, alice, file, made, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_KEYS", str(key_file))
    for name, value in zip(settings.JWT_VARIABLES, (str(file), ISSUER, AUDIENCE), strict=True):
        monkeypatch.setenv(name, value)
    with Client(build(package).to_asgi()) as client:
        for text in (alice, made(), made("ec")):
            assert client.post(PREDICT, json_body=BODY, headers={"authorization": f"Bearer {text}"}).status == 200
        refused = client.post(PREDICT, json_body=BODY, headers={"authorization": f"Bearer {made(exp=1)}"})
        assert_problem(refused, 401, "the token has expired")
        docs = client.get("/docs.json", headers={"authorization": f"Bearer {made()}"})
        assert_problem(docs, 403, "it opens predict, metrics")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("keys.json", "", ""), "DEPLOYKIT_JWT_ISSUER and DEPLOYKIT_JWT_AUDIENCE must be set, too"),
        (("", "a", "b"), "DEPLOYKIT_JWKS must be set, too"),
        (("http://login.example/keys", "a", "b"), "must be a file or an https URL"),
        (("http://localhost:x@login.example/keys", "a", "b"), "must be a file or an https URL"),
        (("https://[login/keys", "a", "b"), "must be a file or an https URL"),
        (("file:///etc/keys.json", "a", "b"), "must be a file or an https URL"),
    ],
)
def test_settings_that_make_no_sense(package, values, message):
    with pytest.raises(InputError, match=message):
        settings.load_settings(package, dict(zip(settings.JWT_VARIABLES, values, strict=True)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("requests=60", "any of requests_per_minute, requests_per_day, tokens_per_minute, concurrency, got 'requests="),
        ("concurrency", "must be NAME=NUMBER, separated by commas, .*, got 'concurrency'"),
        ("concurrency=0", "at least 1 .*, got 'concurrency=0'"),
        ("concurrency=1.5", "whole numbers .*, got 'concurrency=1.5'"),
    ],
)
def test_limits_that_make_no_sense(package, file, value, message):
    environ = dict(zip(settings.JWT_VARIABLES, (str(file), "a", "b"), strict=True))
    with pytest.raises(InputError, match=f"DEPLOYKIT_JWT_LIMITS.*{message}"):
        settings.load_settings(package, {**environ, "DEPLOYKIT_JWT_LIMITS": value})
    with pytest.raises(InputError, match="DEPLOYKIT_JWT_LIMITS limits tokens, and none are accepted"):
        settings.load_settings(package, {"DEPLOYKIT_JWT_LIMITS": "concurrency=1"})
