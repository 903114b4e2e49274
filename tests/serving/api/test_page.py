"""The page's files and what it is told of a model, over HTTP; what it does in a browser is in test_browser."""

import re
from html.parser import HTMLParser

import pytest
from asgi import assert_problem

from deploykit.artifact import MODEL_CARD, ServeOptions
from deploykit.serving.access import keys
from deploykit.serving.api import page

FILES = sorted(page.UI_FOLDER.iterdir())
TEXTS = {file.name: file.read_text(encoding="utf-8") for file in FILES}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def tags():
    parser = Tags()
    parser.feed(TEXTS["index.html"])
    return parser.found


def test_every_file_has_a_route_and_every_route_a_file():
    assert sorted(name for name, _ in page.PAGE_FILES.values()) == sorted(TEXTS)


@pytest.mark.parametrize("path", page.PAGE_FILES)
def test_everybody_gets_the_files_and_the_browser_is_told_to_load_nothing_else(path, client):
    name, media = page.PAGE_FILES[path]
    for method in ("GET", "HEAD"):
        answer = client.request(method, path, headers={"x-api-key": None})
        assert answer.status == 200
        assert answer.headers["content-type"] == media
        assert answer.headers["content-length"] == str((page.UI_FOLDER / name).stat().st_size)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        none = ("default-src", "base-uri", "form-action", "frame-ancestors")
        assert {policy.pop(directive) for directive in none} == {"'none'"}
        assert {policy.pop(directive) for directive in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert policy == {"img-src": "'self' data:", "require-trusted-types-for": "'script'"}
    assert client.get(path).content == (page.UI_FOLDER / name).read_bytes()
    assert_problem(client.post(path), 405, "GET, HEAD only")


@pytest.mark.parametrize("name", TEXTS)
def test_no_file_names_an_address_outside(name):
    namespace = "xmlns='http://www.w3.org/2000/svg'"  # of the icon; a name, and nothing that is loaded
    assert not re.search(r"https?:|wss?:|[\"'(]//|@import|url\(", TEXTS[name].replace(namespace, ""))


def test_nothing_that_is_served_refers_to_another_origin(serve, package, key_file):
    client = serve(package)
    key = {"x-api-key": keys.add(key_file, "all", keys.SCOPES)}
    served = {}
    for route in client._app._routes:
        if route.method == "GET":
            for path in (route.path, *route.other_paths):
                served[path] = client.get(path, headers=key)
    assert {"/", "/ui", "/ui/app.js", "/docs.json", "/schema.json"} <= served.keys()
    for path, answer in served.items():
        assert answer.status == 200
        kind = answer.headers["content-type"].partition(";")[0]
        if kind not in ("application/json", "text/plain"):
            assert "default-src 'none'" in answer.headers["content-security-policy"], path
            text = answer.text.replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?:|wss?:|[\"'(]//|@import|url\(", text), path
    assert served["/"].content == served["/ui"].content
    assert_problem(client.get("/static_content/swagger-ui.css", headers=key), 404, "no such path")


def test_nothing_is_inline_and_all_that_is_loaded_is_a_file_of_the_page(tags):
    assert len(tags) > 30
    for tag, attributes in tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag
    assert "style" not in {tag for tag, _ in tags}
    scripts = [attributes.get("src") for tag, attributes in tags if tag == "script"]
    sheets = [attributes["href"] for tag, attributes in tags if attributes.get("rel") == "stylesheet"]
    assert {f"/{path}" for path in [*scripts, *sheets]} <= set(page.PAGE_FILES)
    assert scripts
    assert sheets


def test_scripts_make_no_markup_of_data_and_keep_nothing_beyond_the_tab():
    for name in [name for name in TEXTS if name.endswith(".js")]:
        forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|localStorage|cookie"
        assert not re.search(forbidden, TEXTS[name]), name
        assert set(re.findall(r'from "(.*?)"', TEXTS[name])) <= {"./answers.js", "./card.js"}


def test_the_recipe_switches_the_page_off_and_the_rest_stays(serve, make_package, tmp_path):
    client = serve(make_package(tmp_path / "p", serve=ServeOptions(ui=False)).path)
    for path in page.PAGE_FILES:
        assert_problem(client.get(path), 404, "no such path")
    assert_problem(client.get("/"), 404, "no such path")
    assert client.get(page.MODEL_PATH).status == 200


@pytest.mark.parametrize("path", ["/ui/", "/ui/index.html", "/ui/../service.py", "/ui/%2e%2e/page.py", "/ui/none.js"])
def test_no_other_file_is_reached(client, path):
    assert_problem(client.get(path), 404, "no such path")


def test_what_the_page_is_told_of_a_model(serve, make_package, tmp_path):
    options = ServeOptions(timeout_s=2.5, redact=True)
    card = "# tiny\n\nUmlauts: ä\n"
    made = make_package(
        tmp_path / "p",
        **{"pair": True, "serve": options, "task_options": {"max_windows": 3, "abstain_below": 0.7}},
        then=lambda draft: (draft / MODEL_CARD).write_text(card, "utf-8"),
    )
    found = serve(made.path).get(page.MODEL_PATH)
    assert found.headers["content-type"] == "application/json"
    assert found.json() == {
        **{"name": "tiny", "version": made.manifest.key[:12], "task": "text-classification"},
        **{"labels": ["negative", "positive"], "pair": True, "explains": True, "max_tokens": 64},
        **{"fields": ["text", "text_pair"], "files": [], "max_file_bytes": 8 * 2**20, "body": "texts"},
        **{"max_windows": 3, "abstain_below": 0.7, "timeout_s": 2.5, "redact": True, "card": card},
    }


def test_a_model_whose_answers_are_spans_is_not_explained_and_a_card_may_be_missing(serve, make_package, tmp_path):
    labels = ("O", "B-NAME", "I-NAME")
    made = make_package(
        tmp_path / "p",
        **{"task": "token-classification", "labels": labels},
        then=lambda draft: (draft / MODEL_CARD).unlink(),
    )
    found = serve(made.path).get(page.MODEL_PATH).json()
    assert (found["explains"], found["card"], found["labels"]) == (False, "", list(labels))
