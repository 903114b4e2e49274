from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import example_of

from deploykit import tasks
from deploykit.data import splits
from deploykit.data.examples import Split, identity_of
from deploykit.tasks import Span

TEXT = tasks.load("text-classification")
TOKEN = tasks.load("token-classification")


def split(examples):
    return Split("train", "a.csv", "line", tuple(examples), tuple(range(2, len(examples) + 2)))


def labelled(**counts):
    return [example_of(f"{label} {number}", label=label) for label, count in counts.items() for number in range(count)]


def counts(part):
    return Counter(example.target for example in part.examples)


def test_a_label_of_one_text_stays_in_training():
    rest, part = splits.cut(split(labelled(common=98, rare=1, other=1)), "test", 0.3, TEXT, 0)
    assert {"rare", "other"} <= set(counts(rest))
    assert counts(part) == {"common": 30}


def test_copies_of_a_text_are_kept_together_even_with_other_labels():
    rows = [example_of(f"text {number % 40}", label="ab"[number % 3 == 0]) for number in range(400)]
    rest, part = splits.cut(split(rows), "test", 0.25, TEXT, 0)
    assert not {identity_of(row) for row in rest.examples} & {identity_of(row) for row in part.examples}
    assert len(rest.examples) + len(part.examples) == 400
    assert len({identity_of(row) for row in part.examples}) == 10


@pytest.mark.parametrize("shared", ["first", "second"])
def test_rows_that_share_a_text_of_their_pairs_are_kept_together(shared):
    pairs = [(f"query {number % 50}", f"candidate {number}") for number in range(400)]
    texts = pairs if shared == "first" else [pair[::-1] for pair in pairs]
    rows = [example_of(*pair, label="yes" if number % 8 else "no") for number, pair in enumerate(texts)]
    rest, part = splits.cut(split(rows), "test", 0.2, TEXT, 0)
    place = 0 if shared == "first" else 1
    assert not {identity_of(row)[place] for row in rest.examples} & {identity_of(row)[place] for row in part.examples}
    assert len(part.examples) == 80


def test_a_text_that_very_many_pairs_share_keeps_none_together():
    rows = [example_of("is this about sport", f"text {number}", label="ab"[number % 2]) for number in range(100)]
    rest, part = splits.cut(split(rows), "test", 0.2, TEXT, 0)
    assert (len(rest.examples), len(part.examples)) == (80, 20)


@pytest.mark.parametrize("seed", range(10))
def test_each_label_keeps_a_text_in_training_where_texts_have_several(seed):
    pairs = [("P", "X"), ("Q", "X"), ("P", "R"), ("Q", "S"), ("R", "S")]
    rows = [
        example_of(
            f"a b {number}", spans=tuple(Span(2 * index, 2 * index + 1, label) for index, label in enumerate(pair))
        )
        for number, pair in enumerate(pairs)
    ]
    rest, _ = splits.cut(split(rows), "test", 0.49, TOKEN, seed)
    assert {label for row in rest.examples for label in TOKEN.example_labels(row)} == set("PQRSX")


def test_shares_are_exact_and_proportional():
    rest, part = splits.cut(split(labelled(a=700, b=250, c=50)), "test", 0.1, TEXT, 7)
    assert counts(part) == {"a": 70, "b": 25, "c": 5}
    assert counts(rest) == {"a": 630, "b": 225, "c": 45}
    assert part.name == "test"
    assert rest.name == "train"


def test_rows_keep_their_order_and_lines():
    whole = split(labelled(a=50, b=50))
    for part in splits.cut(whole, "test", 0.2, TEXT, 3):
        assert list(part.places) == sorted(part.places)
        assert all(whole.examples[line - 2] is row for line, row in zip(part.places, part.examples, strict=True))


def test_the_seed_decides():
    whole = split(labelled(a=50, b=50))
    places = [splits.cut(whole, "test", 0.2, TEXT, seed)[1].places for seed in (0, 0, 1)]
    assert places[0] == places[1]
    assert places[0] != places[2]


@pytest.mark.parametrize("seed", range(10))
def test_an_example_with_several_labels_counts_for_its_rarest(seed):
    both = [example_of(f"a b {n}", spans=(Span(0, 1, "COMMON"), Span(2, 3, "RARE"))) for n in range(20)]
    common = [example_of(f"c d {n}", spans=(Span(0, 1, "COMMON"),)) for n in range(80)]
    _, part = splits.cut(split([*both, *common]), "test", 0.1, TOKEN, seed)
    assert Counter(len(row.target) for row in part.examples) == {2: 2, 1: 8}


@pytest.mark.parametrize(
    ("sizes", "share", "expected"),
    [((1, 1, 1), 0.4, [0, 0, 0]), ((7, 2, 1), 0.3, [2, 1, 0]), ((2, 2), 0.49, [1, 1]), ((10, 10), 0.25, [3, 2])],
)
def test_the_largest_remainder_never_takes_a_whole_stratum(sizes, share, expected):
    assert splits.allocate_by_largest_remainder(np.array(sizes), share) == expected


ROWS = st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abcd")), min_size=1, max_size=60)


@given(ROWS, st.floats(0.01, 0.49), st.integers(0, 100))
def test_a_cut_loses_no_row_parts_no_copies_and_leaves_every_label(rows, share, seed):
    whole = split([example_of(f"text {number}", label=label) for number, label in rows])
    rest, part = splits.cut(whole, "test", share, TEXT, seed)
    assert sorted((*rest.places, *part.places)) == list(whole.places)
    assert {identity_of(example) for example in rest.examples}.isdisjoint(
        identity_of(example) for example in part.examples
    )
    assert set(counts(rest)) == set(counts(whole))
    texts = len({identity_of(example) for example in whole.examples})
    assert len({identity_of(example) for example in part.examples}) <= round(texts * share)
    assert (rest, part) == splits.cut(whole, "test", share, TEXT, seed)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20), st.floats(0.01, 0.49))
def test_a_share_is_divided_in_proportion(sizes, share):
    counts = splits.allocate_by_largest_remainder(np.array(sizes), share)
    assert all(0 <= count < size or count == 0 for count, size in zip(counts, sizes, strict=True))
    assert all(abs(count - size * share) <= 1 for count, size in zip(counts, sizes, strict=True))
    assert sum(counts) <= max(round(sum(sizes) * share), sum(int(size * share) for size in sizes))
