"""Schemes of tags: each is read as what it is, and what is none is refused by name."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from deploykit.tasks._tags import decode_entities, recognize_scheme

ROW = "O S-PER O B-LOC I-LOC E-LOC O B-LOC E-LOC S-LOC"  # BIOES
WRITTEN = {
    "BIO": lambda begins, ends, before: "B" if begins else "I",
    "IOB1": lambda begins, ends, before: "B" if begins and before else "I",
    "BIOES": lambda begins, ends, before: {(1, 1): "S", (1, 0): "B", (0, 1): "E"}.get((begins, ends), "I"),
    "BILOU": lambda begins, ends, before: {(1, 1): "U", (1, 0): "B", (0, 1): "L"}.get((begins, ends), "I"),
    "BMES": lambda begins, ends, before: {(1, 1): "S", (1, 0): "B", (0, 1): "E"}.get((begins, ends), "M"),
}
FORMS = ("{prefix}-{label}", "{prefix}_{label}", "{prefix}:{label}", "{label}-{prefix}", " {prefix}-{label} ")


def read(tags):
    return decode_entities(list(map(recognize_scheme(tags), tags)))


def write(spans, length, letters, form):
    """Spans (label, first, last) as the tags of a scheme."""
    tags = ["O"] * length
    for number, (label, first, last) in enumerate(spans):
        before = number > 0 and spans[number - 1][0] == label and spans[number - 1][2] == first - 1
        for place in range(first, last + 1):
            prefix = WRITTEN[letters](place == first, place == last, before)
            tags[place] = form.format(prefix=prefix, label=label)
    return tags


@st.composite
def spans(draw):
    """A length, and spans in it that do not overlap; `-` and letters of schemes stand in labels as well."""
    length = draw(st.integers(1, 12))
    edges = sorted(draw(st.sets(st.integers(0, length), max_size=8)))
    labels = st.sampled_from(["PER", "LOC", "my-name", "B cell"])
    pairs = [pair for pair in pairwise(edges) if draw(st.booleans())]
    return length, [(draw(labels), start, end - 1) for start, end in pairs]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("letters", WRITTEN)
@given(drawn=spans())
def test_spans_written_in_any_scheme_are_read_back(letters, form, drawn):
    length, expected = drawn
    tags = write(expected, length, letters, form)
    assert read(tags) == expected
    assert read([tag.lower() if tag.strip() == "O" else tag for tag in tags]) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-PER E-PER O S-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("b-per i-per o", [("per", 0, 1)]),
        ("B_PER I_PER O", [("PER", 0, 1)]),
        ("PER-B PER-I O", [("PER", 0, 1)]),
        ("B-PER B-PER I-LOC", [("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 2)]),
        ("E-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("B-PER E-PER I-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("PER PER O LOC", [("PER", 0, 1), ("LOC", 3, 3)]),  # one entity of two words: nothing says that they are two
        ("NOUN NOUN VERB", [("NOUN", 0, 0), ("NOUN", 1, 1), ("VERB", 2, 2)]),
        ("person-actor person-actor O E-MAIL", [("person-actor", 0, 1), ("E-MAIL", 3, 3)]),
        ("e-mail phone", [("e-mail", 0, 0), ("phone", 1, 1)]),
        ("N V I S", [("N", 0, 0), ("V", 1, 1), ("I", 2, 2), ("S", 3, 3)]),
    ],
)
def test_schemes_are_read_as_what_they_are(tags, expected):
    assert read(tags.split()) == expected


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("B-PER PER O", r"^the tag 'PER' has no prefix, and other tags of the data have one: write B-PER or I-PER$"),
        ("B- O", r"^the tag 'B-' names no label, expected one such as B-PER$"),
        ("B-PER I- O", r"^the tag 'I-' names no label"),
        ("B I O", r"^the tag 'B' names no label, expected one such as B-PER$"),
        ("B M E S", "names no label"),
        ("I O", "^the tag 'I' names no label"),
    ],
)
def test_a_tag_that_is_none_of_the_scheme_is_refused_by_name(tags, message):
    with pytest.raises(ValueError, match=message):
        read(tags.split())


@given(st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-O", "I-a-b"]), max_size=20))
def test_predictions_are_decoded_as_seqeval_does(tags):
    assert decode_entities(tags) == [tuple(found) for found in get_entities(tags)]
