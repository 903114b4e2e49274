import pytest
from rows import example_of

from deploykit import tasks
from deploykit.data import examples
from deploykit.data.sources import BrokenRow, Row, Table
from deploykit.errors import DataError
from deploykit.recipe import DataSection
from deploykit.tasks import Span

TEXT = tasks.load("text-classification")
TOKEN = tasks.load("token-classification")


def table(*rows, broken=(), unit="line"):
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table("a.csv", unit, columns, tuple(Row(line, row) for line, row in enumerate(rows, start=2)), broken)


def parse(found, task=TEXT, **fields):
    return examples.parse("train", found, task, DataSection(train="a.csv", **fields))


def test_a_missing_column_is_named_with_the_nearest_and_all_that_are_there():
    message = (
        r"^a\.csv has no column 'label' \(did you mean 'Labels'\?\)\. It has: id, text, Labels\."
        r" Name the right one with data\.label\.$"
    )
    with pytest.raises(DataError, match=message):
        parse(table({"id": "1", "text": "a", "Labels": "x"}))


def test_all_missing_columns_are_named_at_once():
    message = (
        r"no column 'sentiment'\. It has: id, Review ?\. Name the right one with data\.label\. a\.csv has no column"
        r" 'review' \(did you mean 'Review '\?\).* data\.text\. .*no column 'title'.* data\.text_pair\.$"
    )
    with pytest.raises(DataError, match=message):
        parse(table({"id": "1", "Review ": "a"}), text="review", label="sentiment", text_pair="title")


@pytest.mark.parametrize(("fields", "role"), [({}, "tokens"), ({}, "tags"), ({"spans": "names"}, "spans")])
def test_each_task_asks_for_its_own_columns(fields, role):
    with pytest.raises(DataError, match=rf"Name the right one with data\.{role}\."):
        parse(table({"id": "1"}), TOKEN, **fields)


def test_ten_broken_rows_are_listed_and_the_rest_is_counted():
    rows = [{"text": "", "label": "x"}] * 12 + [{"text": "fine", "label": "x"}]
    with pytest.raises(DataError) as caught:
        parse(table(*rows))
    head, *lines = str(caught.value).split("\n    ")
    assert head == "a.csv has 12 rows that cannot be read. Correct or remove:"
    assert lines[:10] == [f"line {line}: 'text' is '', expected a text that is not empty" for line in range(2, 12)]
    assert lines[10:] == ["and 2 more"]


def test_rows_that_the_source_and_the_task_refuse_come_in_the_order_of_the_file():
    found = table({"text": "a", "label": 0.5}, {"text": "b"}, broken=(BrokenRow(1, "no JSON"), BrokenRow(9, "no JSON")))
    with pytest.raises(
        DataError, match=r"4 rows .*:\n    line 1: no JSON\n    line 2: the label is 0\.5, .*\n"
    ) as caught:
        parse(found)
    assert str(caught.value).endswith("\n    line 3: has no 'label'\n    line 9: no JSON")


def test_a_broken_row_without_lines_is_counted_as_a_row():
    with pytest.raises(DataError, match=r"a row that cannot be read\. Correct or remove:\n    row 2: 'text' is None"):
        parse(table({"text": None, "label": "x"}, unit="row"))


def test_half_of_a_surrogate_pair_is_broken():
    with pytest.raises(DataError, match=r"line 2: half of a surrogate pair"):
        parse(table({"text": "a \ud800", "label": "x"}))
    with pytest.raises(DataError, match=r"line 2: half of a surrogate pair"):
        parse(table({"text": "a", "label": "\udfff"}))
    spans = [{"start": 0, "end": 1, "label": "\ud800"}]
    with pytest.raises(DataError, match=r"line 2: half of a surrogate pair"):
        parse(table({"text": "a", "spans": spans}), TOKEN, spans="spans")


def test_numeric_labels_mean_the_same_in_every_format():
    split = parse(table({"text": "a", "label": "1"}, {"text": "b", "label": 1}, {"text": "c", "label": " 1 "}))
    assert [example.target for example in split.examples] == ["1", "1", "1"]
    assert split.places == (2, 3, 4)


def test_a_pair_and_named_columns():
    split = parse(table({"q": "a", "p": "b", "y": "no"}), text="q", text_pair="p", label="y")
    assert split.examples == (example_of("a", "b", "no"),)


def test_take_keeps_lines_and_the_source():
    split = parse(table({"text": "a", "label": "x"}, {"text": "b", "label": "y"}))
    part = split.take("test", [1])
    assert (part.name, part.source, part.places) == ("test", "a.csv", (3,))
    assert part.examples == (example_of("b", label="y"),)


def test_texts_are_the_same_whatever_the_white_space_but_not_whatever_the_pair():
    assert examples.identity_of(example_of("a  b\n")) == examples.identity_of(example_of(" a b", label="x"))
    assert examples.identity_of(example_of("a", "b")) != examples.identity_of(example_of("a", "c"))
    assert examples.identity_of(example_of("a", "b")) != examples.identity_of(example_of("a"))


def test_labels_are_counted_as_often_as_they_stand_there():
    assert TOKEN.example_labels(example_of("a b", spans=(Span(0, 1, "X"), Span(2, 3, "X")))) == ("X", "X")
    assert TEXT.example_labels(example_of("a b", label="good")) == ("good",)


def test_the_slice_of_a_row_is_the_value_of_its_column():
    rows = [
        {"text": "a", "label": "x", "lang": "en"},
        {"text": "b", "label": "y", "lang": 7},
        {"text": "c", "label": "y"},
    ]
    split = parse(table(*rows), slice="lang")
    assert [example.slice for example in split.examples] == ["en", "7", ""]
    with pytest.raises(DataError, match=r"has no column 'language'.* Name the right one with data\.slice\.$"):
        parse(table(*rows), slice="language")


@pytest.mark.parametrize("missing", ["angr", "joy"])
def test_a_missing_column_of_several_is_named(missing):
    task = tasks.load("multi-label-classification")
    found = table({"text": "a", **{name: "1" for name in ("joy", "anger") if name != missing}})
    with pytest.raises(DataError, match=rf"has no column '{missing}'.* Name the right one with data\.label_columns\."):
        parse(found, task, label_columns="joy, angr" if missing == "angr" else "joy, anger")


def test_a_slice_without_a_value_has_no_name():
    split = parse(
        table({"text": "a", "label": "x", "lang": None}, {"text": "b", "label": "y", "lang": "en"}), slice="lang"
    )
    assert [example.slice for example in split.examples] == ["", "en"]
