import pytest
from rows import example_of

from deploykit import tasks
from deploykit.data import checks
from deploykit.data.examples import Split
from deploykit.errors import DataError
from deploykit.tasks import Span

TEXT = tasks.load("text-classification")
TOKEN = tasks.load("token-classification")
GOOD = [("a", "x"), ("b", "y")]


def split(name, rows, unit="line"):
    examples = tuple(example_of(text, label=label) for text, label in rows)
    return Split(name, f"{name}.csv", unit, examples, tuple(range(2, len(rows) + 2)))


def found(train=GOOD, validation=(("c", "x"),), test=(("d", "y"),), allow_leakage=False):
    rows = {"train": train, "validation": validation, "test": test}
    return list(checks.find_problems({name: split(name, part) for name, part in rows.items()}, TEXT, allow_leakage))


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_an_empty_split_is_refused(name):
    assert found(**{name: ()}) == [f"the {name} split is empty ({name}.csv holds no rows for it). Add rows."]


def test_one_class_only_is_refused():
    assert found(train=[("a", "x"), ("b", "x")], test=[("d", "x")]) == [
        "train.csv has only one label, x (rows: 2), expected at least two. Add rows of another label."
    ]


def test_token_classification_without_any_span_has_one_class():
    parts = {
        name: Split(name, f"{name}.csv", "line", (example_of(name, spans=()),), (2,))
        for name in ("train", "validation", "test")
    }
    assert list(checks.find_problems(parts, TOKEN, allow_leakage=False)) == [
        "train.csv has only one label, O (rows: 1), expected at least two. Add rows of another label."
    ]


def test_labels_that_training_never_saw_are_listed_with_their_lines():
    test = [(f"t{number}", "z" if number % 2 else "y") for number in range(24)]
    assert found(test=[*test, ("last", "A")]) == [
        "the label 'A' occurs in the test split but not in training: test.csv, line 26. Training has: x, y. Add"
        " rows of it to the training file, or correct it.",
        "the label 'z' occurs in the test split but not in training: test.csv, line 3, 5, 7, 9, 11, 13, 15, 17, 19,"
        " 21, and 2 more. Training has: x, y. Add rows of it to the training file, or correct it.",
    ]


def test_a_label_of_spans_that_training_never_saw():
    def part(name, label):
        return Split(
            name, f"{name}.csv", "row", (example_of(name, spans=(Span(0, 1, label), Span(2, 3, label))),), (5,)
        )

    parts = {name: part(name, label) for name, label in (("train", "A"), ("validation", "B"), ("test", "A"))}
    (problem,) = checks.find_problems(parts, TOKEN, allow_leakage=False)
    assert problem.startswith(
        "the label 'B' occurs in the validation split but not in training: validation.csv, row 5."
    )


def test_leakage_lists_ten_rows_of_both_splits_and_counts_the_rest():
    train = [*GOOD, *((f"text {number}", "x") for number in range(12))]
    (problem,) = found(train=train, test=[(f"text  {number}", "x") for number in range(12)])
    head, *lines = problem.split("\n    ")
    assert head == (
        "12 rows of the test split occur in the train split, too, so a score would flatter the model. Remove them from"
        " one split, or set data.allow_leakage: true:"
    )
    assert lines[:10] == [f"train line {n + 4}, test line {n + 2}: 'text  {n}'" for n in range(10)]
    assert lines[10:] == ["and 2 more"]


def test_leakage_is_found_between_validation_and_test_too():
    (problem,) = found(validation=[("c", "x")], test=[("c", "y")])
    assert problem.startswith("1 row of the test split occurs in the validation split, too")


def test_leakage_may_be_allowed_and_duplicates_within_a_split_are_no_error():
    assert found(train=[*GOOD, *GOOD], test=GOOD, allow_leakage=True) == []
    assert found(train=[*GOOD, *GOOD]) == []


def test_several_problems_are_refused_together():
    with pytest.raises(DataError) as caught:
        checks.raise_problems(found(train=[("a", "x")], test=[("a", "x"), ("e", "z")]))
    head, *lines = str(caught.value).split("\n  - ")
    assert head == "the data has 3 problems:"
    assert [line.split(",")[0] for line in lines] == [
        "train.csv has only one label",
        "the label 'z' occurs in the test split but not in training: test.csv",
        "1 row of the test split occurs in the train split",
    ]


def test_one_problem_stands_alone_and_none_is_no_error():
    with pytest.raises(DataError, match=r"^just this$"):
        checks.raise_problems(["just this"])
    checks.raise_problems([])
