"""Why this label: weights by leaving parts out, bounded in cost."""

import pytest
from asgi import PREDICT, assert_problem, metrics

from deploykit.serving.access import keys
from deploykit.serving.api.explain import split_parts

EXPLAIN = "/v1/explain"
TEXT = "a great film, but the plot is weak"


@pytest.fixture
def asking(key_file, serve, package):
    client = serve(package)
    key = keys.add(key_file, "why", ["explain", "predict", "metrics"])
    client._headers["x-api-key"] = key
    return client


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Field required"),
        ({"texts": []}, "at least 1 item"),
        ({"texts": [""]}, "at least 1 character"),
        ({"texts": [TEXT, TEXT]}, "at most 1 item"),
        ({"texts": ["a" * 20001]}, "at most 20000 characters"),
        ({"texts": [TEXT], "text_pairs": ["b"]}, "send no text_pairs"),
        ({"texts": [TEXT], "label": "joy"}, "one of the 2 of this model"),
        ({"texts": [TEXT], "text": TEXT}, "send either texts or text"),
        ({"text": ["a"]}, "valid string"),
        ({"text": TEXT, "text_pair": "b"}, "send no text_pairs"),
    ],
)
def test_bodies_that_do_not_fit(asking, body, message):
    answer = asking.post(EXPLAIN, json_body=body)
    assert_problem(answer, 422, "does not fit")
    assert message in answer.json()["errors"][0]["message"]


def test_a_key_for_predictions_does_not_open_explanations(client):
    assert_problem(client.post(EXPLAIN, json_body={"texts": [TEXT]}), 403, "lacks the scope 'explain'")


def test_a_weight_is_what_the_label_loses_without_the_word(asking):
    found = asking.post(EXPLAIN, json_body={"texts": [TEXT]}).json()
    words = TEXT.split()
    assert [part["text"] for part in found["parts"]] == words
    assert all(TEXT[part["start"] : part["end"]] == part["text"] for part in found["parts"])
    starts = [part["start"] for part in found["parts"]]
    without = [TEXT[:start] + TEXT[start + len(word) :] for start, word in zip(starts, words, strict=True)]
    asked = asking.post(PREDICT, json_body={"texts": [TEXT, *without]}).json()["predictions"]
    assert (found["label"], found["score"]) == (asked[0]["label"], pytest.approx(asked[0]["score"], abs=1e-6))
    expected = [found["score"] - one["scores"][found["label"]] for one in asked[1:]]
    assert [part["weight"] for part in found["parts"]] == pytest.approx(expected, abs=1e-6)
    assert any(abs(weight) > 1e-6 for weight in expected)


def test_text_is_read_where_texts_is_not_sent(asking):
    texts, text = (asking.post(EXPLAIN, json_body=body).json() for body in ({"texts": [TEXT]}, {"text": TEXT}))
    assert text == texts


def test_any_label_can_be_explained(asking):
    both = [
        asking.post(EXPLAIN, json_body={"texts": [TEXT], "label": label}).json() for label in ("negative", "positive")
    ]
    assert [found["label"] for found in both] == ["negative", "positive"]
    assert sum(found["score"] for found in both) == pytest.approx(1, abs=1e-6)
    for one, other in zip(both[0]["parts"], both[1]["parts"], strict=True):  # of two labels, one gains what one loses
        assert one["weight"] == pytest.approx(-other["weight"], abs=1e-6)


def test_what_is_left_out_is_not_counted_as_asked_for(asking):
    before = metrics(asking)
    asking.post(EXPLAIN, json_body={"texts": [TEXT]})
    after = metrics(asking)
    for name in ('deploykit_predictions_total{label="positive"}', "deploykit_tokens_total"):
        assert after[name] == before[name]


@pytest.mark.parametrize(("times", "count"), [(100, 64), (320, 64), (1000, 21), (3000, 8)])
def test_the_cost_is_bounded(asking, times, count):
    found = asking.post(EXPLAIN, json_body={"texts": ["great " * times]}).json()
    assert len(found["parts"]) == count


def test_a_text_without_words_has_no_parts(asking):
    assert asking.post(EXPLAIN, json_body={"texts": [" \n "]}).json()["parts"] == []


def test_pairs_keep_their_second_text(serve, make_package, tmp_path, key_file):
    client = serve(make_package(tmp_path / "p", pair=True).path)
    client._headers["x-api-key"] = keys.add(key_file, "why", ["explain", "predict"])
    found = client.post(EXPLAIN, json_body={"texts": ["a film"], "text_pairs": ["the end"]}).json()
    assert [part["text"] for part in found["parts"]] == ["a", "film"]
    assert_problem(client.post(EXPLAIN, json_body={"texts": ["a film"]}), 422, "does not fit")


def test_other_tasks_have_no_such_route(serve, make_package, tmp_path):
    client = serve(make_package(tmp_path / "p", task="token-classification", labels=("O", "B-NAME", "I-NAME")).path)
    assert_problem(client.post(EXPLAIN, json_body={"texts": [TEXT]}), 404, "no such path")


@pytest.mark.parametrize(("words", "most", "expected"), [(0, 5, 0), (1, 5, 1), (5, 5, 5), (6, 5, 5), (1000, 7, 7)])
def test_parts_hold_every_word_once(words, most, expected):
    text = "  ".join(f"w{index}" for index in range(words))
    found = split_parts(text, most)
    assert len(found) == expected
    assert " ".join(text[start:end] for start, end in found).split() == text.split()
    sizes = [len(text[start:end].split()) for start, end in found]
    assert not sizes or max(sizes) - min(sizes) <= 1
