"""Tokens of an identity provider: what is refused first, with real signatures."""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from asgi import BODY, PREDICT, Client, assert_problem

from deploykit.errors import InputError
from deploykit.serving import settings
from deploykit.serving.access import jwt as tokens
from deploykit.serving.access.jwt import Tokens
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
        return Tokens(str(file), ISSUER, AUDIENCE).check(text, scope)

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
    assert (found.name, found.key, found.requests_per_minute) == ("jwt:anna", "jwt:anna", None)


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
        Tokens(str(path), ISSUER, AUDIENCE)
    with pytest.raises(InputError, match="cannot be read"):
        Tokens(str(tmp_path / "nowhere"), ISSUER, AUDIENCE)


@pytest.fixture
def provider(private):
    """A server that publishes `served["content"]`, and counts how often it was asked."""
    served = {"content": public_set(private, "rsa"), "count": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served["count"] += 1
            data = served["content"].encode()
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


def test_new_keys_of_a_provider_are_found_and_it_is_not_asked_all_the_time(provider, private, made, monkeypatch):
    async def scenario():
        found = Tokens(provider["url"], ISSUER, AUDIENCE)
        assert found.check(made("rsa"), "predict").name == "jwt:anna"
        provider["content"] = public_set(private, "ec")
        for _ in range(20):
            assert found.check(made("ec"), "predict").reason == "auth_invalid"
            await asyncio.sleep(0.005)
        assert provider["count"] == 1  # it was asked a moment ago
        monkeypatch.setattr(tokens, "AGAIN_S", 0.0)
        found.check(made("ec"), "predict")
        while found._fetching and not found._fetching.done():
            await asyncio.sleep(0.01)
        assert found.check(made("ec"), "predict").name == "jwt:anna"
        assert found.check(made("rsa"), "predict").reason == "auth_invalid"
        return found.failures

    assert asyncio.run(scenario()) == 0


def test_a_provider_that_is_away_takes_no_key_with_it(provider, made, monkeypatch):
    async def scenario():
        found = Tokens(provider["url"], ISSUER, AUDIENCE)
        provider["content"] = ""
        monkeypatch.setattr(tokens, "REFRESH_S", 0.0)
        found.check(made("rsa"), "predict")
        while found._fetching and not found._fetching.done():
            await asyncio.sleep(0.01)
        assert found.failures == 1
        assert found.check(made("rsa"), "predict").name == "jwt:anna"

    asyncio.run(scenario())
    provider["content"] = ""
    assert Tokens(provider["url"], ISSUER, AUDIENCE).failures == 1  # it starts all the same


@pytest.mark.parametrize("content", ["<html>", '{"keys": []}'])
def test_a_provider_that_answers_otherwise_is_asked_again_later(provider, content):
    provider["content"] = content
    assert Tokens(provider["url"], ISSUER, AUDIENCE).failures == 1


def test_who_does_not_speak_http_keeps_no_service_from_starting():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-hello\r\n")

        threading.Thread(target=greet, daemon=True).start()
        assert Tokens(f"http://127.0.0.1:{server.getsockname()[1]}/", ISSUER, AUDIENCE).failures == 1


def test_keys_do_not_come_by_a_redirect_to_where_they_may_be_changed(provider, caplog):
    provider["moved"] = provider["url"].replace("127.0.0.1", "127.0.0.2")
    assert Tokens(provider["url"], ISSUER, AUDIENCE).failures == 1
    assert "which is neither https nor this machine" in caplog.text
    assert provider["count"] == 1


def test_a_service_takes_keys_and_tokens(package, key_file, alice, file, made, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_KEYS", str(key_file))
    for name, value in zip(settings.JWT, (str(file), ISSUER, AUDIENCE), strict=True):
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
    ],
)
def test_settings_that_make_no_sense(package, values, message):
    with pytest.raises(InputError, match=message):
        settings.load(package, dict(zip(settings.JWT, values, strict=True)))
