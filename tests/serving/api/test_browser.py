"""The page in a real browser, asked of real services: what is seen, what the keyboard does, what axe-core finds.

Runs where a Chromium is installed. `SCREENSHOTS` names a folder that keeps the pictures.
"""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from pages import enter, too_wide, violations
from playwright.sync_api import expect
from test_launch import ask, environ

from deploykit.artifact import GRAPH, MODEL_CARD
from deploykit.serving import launch
from deploykit.serving.access import check, keys

WIDTHS = {"desktop": 1280, "phone": 390}
TEXT = "a warm story and i was there until the end"
SCOPES = ("predict", "explain")
VISITORS = {  # made before a service starts, which looks at its keys once a second
    "visitor": {"scopes": SCOPES},
    "predicts": {"scopes": ["predict"]},
    "scrapes": {"scopes": ["metrics"]},
    "comes twice": {"scopes": SCOPES, "requests_per_minute": 2},
    "leaves": {"scopes": SCOPES},
}
MANY = tuple(f"label {number:02}" for number in range(12))
HOSTILE = "<img src=x onerror=alert(1)>"
CARD = f"""# tiny

A model of `tests`, with **twelve** labels. {HOSTILE}

| | |
| --- | --- |
| labels | many |

## What it keeps

- one promise
- another
"""


@dataclass(frozen=True)
class Service:
    """One that runs, and the keys of its visitors."""

    url: str
    file: Path
    visitors: dict[str, str]

    @property
    def key(self):
        """What opens predictions and explanations."""
        return self.visitors["visitor"]

    def predict(self, body):
        status, text = ask(f"{self.url}/v1/predict", self.key, body)
        assert status == 200, text
        (found,) = json.loads(text)["predictions"]
        return found


@pytest.fixture(scope="module")
def started(browser, make_package, tmp_path_factory):
    """`started(name, **changes) -> Service`: of a package with those changes, once for all tests of that name."""
    services, running = {}, []

    def start(name, **changes):
        if name not in services:
            folder = tmp_path_factory.mktemp(name)
            made = make_package(folder / "package", **changes)
            file = folder / "keys.json"
            visitors = {client: keys.add(file, client, **options) for client, options in VISITORS.items()}
            running.append(launch.running_service(made.path, file, environ=environ(folder)))
            services[name] = Service(running[-1].__enter__(), file, visitors)
        return services[name]

    yield start
    for service in running:
        service.__exit__(None, None, None)


@pytest.fixture
def reviews(started):
    """Text classification with two labels."""
    return started("reviews")


@pytest.fixture
def names(started):
    """Token classification."""
    labels = ("O", *(f"{prefix}-{label}" for label in ("CITY", "PERSON", "TITLE") for prefix in "BI"))
    return started("names", task="token-classification", labels=labels)


@pytest.fixture
def pairs(started):
    """Pairs of texts, many labels, and a card that holds markup."""
    return started("pairs", labels=MANY, pair=True, then=lambda draft: (draft / MODEL_CARD).write_text(CARD))


def predict(page, text=TEXT):
    page.locator("#text").fill(text)
    page.get_by_role("button", name="Predict").click()


@pytest.fixture
def picture(tmp_path):
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", full_page=True)


# what everybody can use


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_in_any_state(reviews, names, pairs, visit, scheme, width, picture):
    page = visit(reviews, scheme=scheme, width=WIDTHS[width])
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    expect(page.locator("#key")).to_be_focused()
    assert violations(page) == []
    enter(page, "dk_wrong")
    expect(page.locator("#key-fault")).to_contain_text("not accepted")
    assert violations(page) == []
    enter(page, reviews.key)
    predict(page, "")
    assert violations(page) == []
    predict(page, f"{TEXT} " * 200)
    expect(page.locator("#reading .notice")).to_be_visible()
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#explanation table")).to_be_visible()
    assert violations(page) == []
    predict(page)
    expect(page.locator("#explanation")).to_be_empty()  # it was of the text before
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#explanation table")).to_be_visible()
    assert violations(page) == []
    picture(page, f"classification-{scheme}-{width}")

    for service, name in ((names, "tokens"), (pairs, "pairs")):
        page = visit(service, service.key, scheme, WIDTHS[width])
        if service is pairs:
            page.get_by_label("Second text").fill("the end")
        predict(page, "anna saw a great film in london")
        expect(page.locator("#answer")).to_be_visible()
        assert violations(page) == []
        page.context.set_offline(True)
        predict(page)
        expect(page.locator("#fault")).to_contain_text("cannot be reached")
        assert violations(page) == []
        page.context.set_offline(False)
        predict(page, "anna saw a great film in london")
        expect(page.locator("#fault")).to_be_hidden()
        picture(page, f"{name}-{scheme}-{width}")


def test_the_smallest_phone_scrolls_in_one_direction(reviews, names, visit):
    page = visit(reviews, width=320)
    assert not too_wide(page)
    enter(page, reviews.key)
    predict(page, f"{TEXT} {'x' * 200}")
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#explanation table")).to_be_visible()
    assert not too_wide(page)
    page = visit(names, names.key, width=320)
    predict(page, f"{'anna ' * 20}{'x' * 200}")
    expect(page.locator("#prediction table")).to_be_visible()
    assert not too_wide(page)


def test_the_keyboard_alone_is_enough_and_the_focus_is_seen(reviews, visit):
    page = visit(reviews)

    def tab_to(locator):
        for _ in range(12):
            if locator.evaluate("node => node === document.activeElement"):
                width = page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
                assert width >= 2
                return
            page.keyboard.press("Tab")
        pytest.fail(f"the Tab key does not reach {locator}")

    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type(reviews.key)
    page.keyboard.press("Enter")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type(TEXT)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#said")).to_contain_text("Answer: ")
    expect(page.locator("#text")).to_be_focused()
    tab_to(page.get_by_role("button", name="Predict"))
    page.keyboard.press("Enter")
    tab_to(page.get_by_label("Label", exact=True))
    tab_to(page.get_by_role("button", name="Explain"))
    page.keyboard.press("Space")
    expect(page.locator("#said")).to_contain_text("Explanation ready")
    tab_to(page.get_by_role("button", name="Explain"))
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    tab_to(page.get_by_role("button", name="Predict"))


# what is seen


def test_bars_say_what_the_service_says_and_where_the_time_went(reviews, visit):
    page = visit(reviews, reviews.key)
    expect(page.get_by_role("heading", level=1)).to_have_text("tiny")
    expect(page.locator("#health")).to_have_text("Ready")
    predict(page)
    expect(page.locator("#said")).to_contain_text("Answer: ")
    answer = reviews.predict({"texts": [TEXT]})
    ranked = sorted(answer["scores"].items(), key=lambda found: -found[1])
    rows = page.locator(".bars li")
    assert rows.locator(".name").all_inner_texts() == [label for label, _ in ranked]
    shown = [text.removesuffix(" %") for text in rows.locator(".figure").all_inner_texts()]
    assert [float(text) for text in shown] == pytest.approx([100 * score for _, score in ranked], abs=0.051)
    full = rows.locator(".bar").first.bounding_box()["width"]
    widths = [box["width"] / full for box in (fill.bounding_box() for fill in rows.locator(".fill").all())]
    assert widths == pytest.approx([score for _, score in ranked], abs=0.02)
    expect(page.locator("#reading")).to_have_text(f"The model read {answer['tokens']} tokens.")
    titles, values = (page.locator(f"#time {tag}").all_inner_texts() for tag in ("dt", "dd"))
    told = dict(zip(titles, values, strict=True))
    assert list(told) == ["Round trip", "Service", "Tokenizing", "Waiting", "Model"]
    figures = {name: float(text.removesuffix(" ms")) for name, text in told.items()}
    assert figures["Round trip"] >= figures["Service"] >= figures["Model"]


def test_an_explanation_says_what_the_service_says_for_any_label(reviews, visit):
    page = visit(reviews, reviews.key)
    text = "\U0001f600 a great film"
    predict(page, text)
    page.get_by_label("Label", exact=True).select_option("negative")
    page.get_by_role("button", name="Explain").click()
    rows = page.locator("#explanation tbody tr")
    expect(rows).to_have_count(4)
    body = {"texts": [text], "label": "negative"}
    found = json.loads(ask(f"{reviews.url}/v1/explain", reviews.key, body)[1])
    parts = sorted(found["parts"], key=lambda part: -abs(part["weight"]))
    assert rows.locator("th").all_inner_texts() == [part["text"] for part in parts]
    weights = [float(text.replace("\u2212", "-")) for text in rows.locator("td.figure").all_inner_texts()]
    assert weights == pytest.approx([part["weight"] for part in parts], abs=0.00051)
    assert page.locator("#explanation .passage").inner_text() == text
    strong = {part["text"]: part["weight"] > 0 for part in parts if abs(part["weight"]) >= 0.005}
    marks = page.locator("#explanation .passage mark").all()
    assert {mark.inner_text(): mark.get_attribute("class") == "for" for mark in marks} == strong
    styles = {"for": "solid", "against": "dashed"}  # the kind of line tells what the colour tells
    assert strong
    for mark in marks:
        style = mark.evaluate("node => getComputedStyle(node).textDecorationStyle")
        assert style == styles[mark.get_attribute("class")]


def test_spans_stand_in_their_text_with_their_labels(names, visit):
    page = visit(names, names.key)
    text = "\U0001f600 anna saw a great film in london \U0001f3ac the end"
    predict(page, text)
    expect(page.locator("#prediction table")).to_be_visible()
    found = names.predict({"texts": [text]})["entities"]
    assert found, "the tiny model finds names everywhere"
    marks = page.locator("#prediction mark").all()
    assert [mark.inner_text() for mark in marks] == [f"{entity['text']}\u00a0{entity['label']}" for entity in found]
    for mark in marks:
        mark.evaluate("node => { node.lastChild.remove(); node.lastChild.remove(); }")
    assert page.locator(".passage").inner_text() == text
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator("#prediction tbody tr").all()]
    assert [(text, label) for text, label, *_ in rows] == [(entity["text"], entity["label"]) for entity in found]
    expect(page.locator("#why")).to_be_hidden()


def test_pairs_have_two_fields_and_many_labels_are_folded(pairs, visit):
    page = visit(pairs, pairs.key)
    predict(page)
    expect(page.locator("#second-fault")).to_have_text("Enter a text first.")
    expect(page.get_by_label("Second text")).to_be_focused()
    page.get_by_label("Second text").fill("the end")
    predict(page)
    expect(page.locator(".bars li:visible")).to_have_count(10)
    button = page.get_by_role("button", name="Show all 12 labels")
    button.click()
    expect(page.locator(".bars li:visible")).to_have_count(12)
    answer = pairs.predict({"texts": [TEXT], "text_pairs": ["the end"]})
    expect(page.locator(".verdict strong")).to_have_text(answer["label"])
    page.get_by_role("button", name="Show the first 10").click()
    expect(page.locator(".bars li:visible")).to_have_count(10)
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#explanation tbody tr")).to_have_count(10)


def test_what_others_wrote_is_text_and_never_markup(pairs, visit):
    page = visit(pairs, pairs.key)
    card = page.locator("#card-text")
    assert card.locator("h3, h4").all_inner_texts() == ["What it keeps"]  # and not the name once more
    assert card.locator("li").all_inner_texts() == ["one promise", "another"]
    assert (card.locator("th").inner_text(), card.locator("td").inner_text()) == ("labels", "many")
    assert (card.locator("code").inner_text(), card.locator("strong").inner_text()) == ("tests", "twelve")
    expect(card).to_contain_text(HOSTILE)
    page.get_by_label("Second text").fill(HOSTILE)
    predict(page, HOSTILE)
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#explanation .passage")).to_have_text(HOSTILE)
    assert page.locator("img").count() == 0


@pytest.mark.parametrize(("words", "windows", "cut"), [(200, 4, False), (1000, 16, True)])
def test_a_long_text_says_how_it_was_read(reviews, visit, words, windows, cut):
    page = visit(reviews, reviews.key)
    predict(page, "great " * words)
    expect(page.locator("#reading")).to_contain_text(f"in {windows} overlapping windows")
    assert page.locator("#reading .notice").count() == cut


def test_an_answer_that_abstains_says_so_and_shows_the_label_all_the_same(started, visit):
    page = visit(service := started("abstains", task_options={"abstain_below": 1.0}), service.key)
    predict(page)
    expect(page.locator("#answer .notice")).to_contain_text("The model abstained")
    expect(page.locator("#answer .verdict strong")).to_have_text(service.predict({"texts": [TEXT]})["label"])


# who may ask, and what goes wrong


def test_a_key_is_asked_for_and_forgotten_with_the_page(reviews, visit):
    page = visit(reviews)
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#key-fault")).to_be_empty()
    for given, message in (("", "Enter a key"), ("sch\u00f6n", "letters, digits"), ("dk_wrong", "not accepted")):
        enter(page, given)
        expect(page.locator("#key-fault")).to_contain_text(message)
        expect(page.locator("#key")).to_be_focused()
    assert page.locator("#key").get_attribute("type") == "password"
    enter(page, reviews.key)
    expect(page.locator("#text")).to_be_focused()
    assert page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 0
    assert reviews.key not in page.content() + page.url
    page.reload()
    expect(page.locator("#key")).to_be_focused()


def test_a_key_stays_in_the_tab_where_its_visitor_wants_it_until_it_is_forgotten(reviews, visit):
    page = visit(reviews)
    page.get_by_label("Remember in this tab").check()
    enter(page, reviews.key)
    expect(page.locator("#text")).to_be_focused()
    page.reload()
    expect(page.locator("#text")).to_be_focused()
    assert page.evaluate("localStorage.length") == 0
    predict(page)
    expect(page.locator("#answer")).to_be_visible()
    page.get_by_role("button", name="Forget key").click()
    expect(page.locator("#key")).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0
    assert TEXT not in page.content()
    page.reload()
    expect(page.locator("#key")).to_be_focused()


def test_a_key_that_opens_less_or_is_used_up_or_revoked(reviews, visit):
    page = visit(reviews, reviews.visitors["predicts"])
    predict(page)
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#why-fault")).to_contain_text("lacks the scope 'explain'")

    page = visit(reviews, reviews.visitors["comes twice"])
    predict(page)
    expect(page.locator("#answer")).to_be_visible()
    predict(page)
    expect(page.locator("#fault")).to_contain_text("Too many requests.")
    expect(page.locator("#fault")).to_contain_text("Try again in ")

    page = visit(reviews, reviews.visitors["leaves"])
    keys.revoke(reviews.file, "leaves")
    time.sleep(check.POLL_S + 0.5)
    predict(page)
    expect(page.locator("#key-fault")).to_contain_text("not accepted any more")
    expect(page.locator("#key")).to_be_focused()


def test_a_key_for_something_else_says_what_it_lacks(reviews, visit):
    page = visit(reviews)
    enter(page, reviews.visitors["scrapes"])
    expect(page.locator("#key-fault")).to_contain_text("lacks the scope 'predict'")


def test_an_empty_text_is_not_sent(reviews, visit):
    page = visit(reviews, reviews.key)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for text in ("", " \n "):
        predict(page, text)
        expect(page.locator("#text-fault")).to_have_text("Enter a text first.")
        expect(page.locator("#text")).to_be_focused()
        assert page.locator("#text").get_attribute("aria-invalid") == "true"
    assert asked == []
    predict(page)
    expect(page.locator("#text-fault")).to_be_empty()


def test_without_a_network_the_page_says_so_and_goes_on_later(reviews, visit):
    page = visit(reviews, reviews.key)
    page.context.set_offline(True)
    predict(page)
    expect(page.locator("#fault")).to_contain_text("cannot be reached")
    expect(page.locator("#health")).to_have_text("Not reachable")
    page.context.set_offline(False)
    predict(page)
    expect(page.locator("#answer")).to_be_visible()
    expect(page.locator("#fault")).to_be_hidden()
    expect(page.locator("#health")).to_have_text("Ready", timeout=10_000)  # the page looks again


def test_a_service_that_is_not_ready_or_is_gone(copied, browser, visit, tmp_path):
    content = bytearray((copied / GRAPH).read_bytes())
    content[-1] ^= 1
    (copied / GRAPH).write_bytes(content)
    around = environ(tmp_path, DEPLOYKIT_AUTH="off")
    plan = launch.plan(copied, port=launch.free_port(), environ=around)
    process = subprocess.Popen(plan.argv, env=plan.env, cwd=tmp_path, start_new_session=True)
    try:
        wait_alive(plan.url)
        page = visit(Service(plan.url, tmp_path, {}))
        expect(page.locator("#text")).to_be_focused()  # no key is asked for where none is needed
        expect(page.locator("#forget")).to_be_hidden()
        expect(page.locator("#health")).to_have_text("Not ready")
        predict(page)
        expect(page.locator("#fault")).to_contain_text("cannot answer now. The model is not ready")
        expect(page.locator("#fault")).to_contain_text("Try again in 10 s.")
        page.route("**/v1/model", lambda route: route.abort())
        page.reload()
        expect(page.locator("#unreachable")).to_contain_text("cannot be reached")
        page.unroute("**/v1/model")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#text")).to_be_focused()
    finally:
        launch.stop(process)


def wait_alive(url):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if ask(f"{url}/livez", timeout=5)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail(f"{url} did not come alive")
