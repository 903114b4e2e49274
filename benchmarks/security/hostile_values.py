"""What is wrong with hostile requests: values, bytes, headers and paths that break parsers."""

import json

TEXTS = (
    *("", " ", "\x00", "a\x00b", "\ud800", "\udfff\ud800", "\U0001f468\u200d\U0001f469", "\ufeff", "\uffff"),
    *("\u202egnp.exe", "\u2066\u2069", "e" + "\u0301" * 300, "\u0e01" * 200, "\u4e2d" * 500, "\x1b[31m", "\r\n\r\n"),
    *("%s%n%x", "{{7*7}}", "${jndi:ldap://a}", "<script>", "' OR 1=1 --", "../../etc/passwd", "[MASK]", "\x7f\x80"),
    *("a" * 5000, "a " * 3000, "." * 2000, "\u00df" * 999, "\ufdfa" * 100, "1" * 4000, "a@" * 500, "0" * 3000),
)
ODD = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 10**4000, 1.5, -0.0, 1e308, 5e-324),
    *(float("inf"), float("-inf"), float("nan"), [], {}, [[]], [None], {"": ""}, {"__proto__": {}}, [{}] * 50),
    *TEXTS,
)
NAMES = ("texts", "text", "inputs", "parameters", "top_k", "id", "shape", "data", "__class__", "", "\ud800", "a" * 300)
VALID = (b'"a great film"', b"null", b"[2]", b"1", b'"1"', b"{}")  # of the examples; what no library writes instead:
RAW = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e-999", b"9" * 5000, b"0x10", b"01", b"+1", b"1.", b".5"),
    *(b"nul", b"'a'", b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u0000"', b'"\\x41"', b'"\x00"', b'"\n"', b'"\xff"'),
    *(b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b"/* c */ 1", b"undefined", b"{,}", b"[,]", b"[1,]"),
)
WHOLE = (
    *(b"", b" ", b"null", b"[]", b"{}", b'""', b"0", b"\x00", b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b"{" * 9, b"}"),
    *(b"[" * 100, b'{"a":' * 100, b"texts=a&texts=b", b"--x\r\n\r\na\r\n--x--", b"\x80\x04K\x01.", b"\x1f\x8b\x08\x00"),
)
TENSOR = b'{"inputs": [{"name": "text", "shape": [%s], "datatype": "BYTES", "data": ["a"]}]}'
LARGE = (  # what costs a server most for what it costs to send; @ is a field
    *(b"[" * 100_000, b'{"a":' * 100_000, b'{"@":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    *(b'{"@":[' + b",".join([item] * 300_000) + b"]}" for item in (b"{}", b"1", b'""', b"[]")),
    *(b'{"@":' + item + b"}" for item in (b'"' + b"a" * 1_000_000 + b'"', b"9" * 1_000_000)),
    *(b'{"@":["' + item * 170_000 + b'"]}' for item in (b"a ", b"\\u0301", b"a@")),
    TENSOR % b",".join([b"9"] * 490_000),
    TENSOR % b",".join([b"9" * 4000] * 250),
    *(b" " * 1_000_000 + b"{}", b"a" * 1_048_577, json.dumps(dict.fromkeys(map(str, range(90_000)), 1)).encode()),
)
METHODS = ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE", "POST")
PATHS = (
    *(
        "//",
        "/.",
        "/..",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/predict/",
        "/v1//predict",
        "//v1/predict",
    ),
    *(
        "/V1/PREDICT",
        "/v1/predict%00",
        "/v1/predict%0a",
        "/v1/predict%0d%0aX-A:%20b",
        "/v1/predict;a=b",
        "/v1/predict?" + "a" * 9000,
    ),
    *(
        "/ui/..%2f..%2fmain.py",
        "/ui/%00",
        "/ui/%ff",
        "/ui/" + "a" * 5000,
    ),
    *(
        "/ui/",
        "/ui/%2e%2e/",
        "/ui//etc/passwd",
        "/ui/a%0ab",
        "/%c0%af",
        "/%ed%a0%80",
    ),
    *(
        "/" + "a" * 60_000,
        "/metrics%20",
        "/metrics/../docs.json",
        "/.env",
        "/v2/models/" + "%41" * 99,
        "/%",
        "/%zz",
        "/?",
        "/#a",
        "/a#b",
    ),
    *("/v2/models/%00/infer", "/models/%E2%80%AE", "/" + "/".join("abcdefgh" * 50), "/ui/swagger-ui.css/x"),
)
HEADERS: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    (
        "content-type",
        (b"", b"application/json; charset=utf-16", b"APPLICATION/JSON", b"application/json, text/plain", b"text/plain"),
    ),
    (
        "content-type",
        (
            b"multipart/form-data; boundary=x",
            b"application/x-www-form-urlencoded",
            b"application/vnd.bentoml+pickle",
            b"\xff/\xfe",
        ),
    ),
    ("content-encoding", (b"gzip", b"br", b"identity", b"Identity", b"deflate, gzip", b"", b"\xa0")),
    ("accept", (b"text/html", b"*/*;q=0", b"\xff", b"," * 2000)),
    (
        "x-request-timeout-ms",
        (b"0", b"-1", b"1", b"5", b"1e3", b"\xb2", b"9" * 400, b"NaN", b"", b" 100 ", b"10000", b"0x10"),
    ),
    ("x-request-id", (b"a", b"a" * 64, b"a" * 65, b"a b", b"\xe9", b"..", b"'\"", b"%0a", b"{}", b"<b>")),
    (
        "authorization",
        (b"Bearer", b"Bearer ", b"Basic YTpi", b"Bearer \xff", b"bearer dk_00000000_" + b"a" * 43, b"Bearer ey.ey.ey"),
    ),
    (
        "authorization",
        (
            b"Bearer eyJhbGciOiJub25lIn0.e30.",
            b"\xa0Bearer x",
            b"Bearer " + b"x" * 8000,
            b"Digest a=b",
            b"Bearer dk_\xe9",
        ),
    ),
    (
        "x-api-key",
        (b"", b"dk_", b"\xff" * 50, b"dk_00000000_" + b"\xe9" * 43, b"dk_ZZZZZZZZ_" + b"a" * 43, b"null", b"a, b"),
    ),
    ("host", (b"", b"a b", b"[::1", b"evil.example", b"\xff", b"a" * 300)),
    ("connection", (b"keep-alive, close", b"close, x-api-key", b"Upgrade, close", b"TE, close")),
    ("expect", (b"100-continue", b"200-ok")),
    ("origin", (b"null", b"https://evil.example", b"\xff")),
    (
        "traceparent",
        (
            b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01",
            b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01",
            b"\xff",
            b"ff-a",
        ),
    ),
    ("range", (b"bytes=0-0", b"bytes=-1", b"bytes=5-1", b"bytes=0-0," * 500, b"bytes=" + b"9" * 99 + b"-")),
    ("if-none-match", (b"*", b'"', b"\xff")),
    ("if-modified-since", (b"yesterday", b"Thu, 01 Jan 1970 00:00:00 GMT", b"\xff")),
    ("x-forwarded-for", (b"127.0.0.1", b"a" * 999)),
    ("x-http-method-override", (b"DELETE",)),
    ("cookie", (b"a=b; " * 500, b"\xff")),
    ("bentoml-payload-meta", (b"{}", b"\xff")),
    ("payload-container", (b"NdarrayContainer",)),
)
