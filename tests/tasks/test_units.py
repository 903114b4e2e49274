"""What gets a label: words, numbers and marks, and characters where words are written without spaces."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploykit.tasks._units import join_tokens, units

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    "a7é\u0301 我เก시ि👩\u200d🚀-\u200b", max_size=12
)


def pieces(text):
    return [text[start:end] for start, end in units(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d'água, 3.5!", ["d", "'", "água", ",", "3", ".", "5", "!"]),
        ("我住在北京市1区", list("我住在北京市1区")),
        ("東京タワーに", list("東京タワーに")),
        ("서울에서", list("서울에서")),
        ("กรุงเทพ", ["ก", "รุ", "ง", "เ", "ท", "พ"]),
        ("ລາວ ខ្មែរ", ["ລ", "າ", "ວ", "ខ្មែ", "រ"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("cafe\u0301s are", ["cafe\u0301s", "are"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("buy 7kg", ["buy", "7", "kg"]),
        ("COVID19 B2B x² snake_case", ["COVID19", "B2B", "x²", "snake_case"]),
        ("👩\u200d🚀🇩🇪👍🏽1️⃣", ["👩\u200d🚀", "🇩🇪", "👍🏽", "1️⃣"]),
        ("a\u200bb\ufeff\u3000c \uf0b7 d", ["a", "b", "c", "d"]),
    ],
)
def test_units(text, expected):
    assert pieces(text) == expected


@settings(max_examples=300)
@given(TEXTS)
@example(" \u0308a")
@example("\u0600 1")
def test_units_lie_in_the_text_in_order_and_hold_all_that_can_be_seen(text):
    places = units(text)
    flat = places.reshape(-1).tolist()
    assert flat == sorted(flat)
    assert (places[:, 0] < places[:, 1]).all()
    assert not flat or (flat[0] >= 0 and flat[-1] <= len(text))
    covered = {place for start, end in places.tolist() for place in range(start, end)}
    for place in set(range(len(text))) - covered:
        assert text[place].isspace() or unicodedata.category(text[place]).startswith("C")
    assert not any(text[start].isspace() for start, _ in places.tolist())


@given(TEXTS, st.integers(0, 40))
def test_the_beginning_of_a_text_has_the_units_of_the_whole_that_begin_in_it(text, cut):
    begins = units(text)[:, 0]
    assert units(text[:cut])[:, 0].tolist() == begins[begins < cut].tolist()


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["Anna", "lives", "."], "Anna lives ."),
        (["我", "住在", "北京", "，", "好"], "我住在北京，好"),
        (list("他有iPhone15。"), "他有iPhone15。"),
        (["用", "iPhone", "手机"], "用iPhone手机"),
        (["ผม", "อยู่", "กรุงเทพ"], "ผมอยู่กรุงเทพ"),
        (["서울", "은", "크다"], "서울 은 크다"),
        (list("서울은 A1 크다"), "서울은 A1 크다"),
        (["I", "a", "m"], "I a m"),
        (["good", "👍"], "good 👍"),
        (["हि", "a"], "हि a"),
    ],
)
def test_tokens_are_joined_as_they_are_written(tokens, text):
    joined, places = join_tokens(tokens)
    assert joined == text
    assert [joined[start:end] for start, end in places] == tokens


@given(TEXTS.filter(str.strip))
def test_the_units_of_a_text_joined_as_tokens_keep_their_places_in_order(text):
    tokens = pieces(text) or ["a"]
    joined, places = join_tokens(tokens)
    assert [joined[start:end] for start, end in places] == tokens
    assert joined.replace(" ", "") == "".join(tokens).replace(" ", "")
