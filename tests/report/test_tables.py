import pytest

from deploykit.artifact import Metric
from deploykit.report import tables


@pytest.fixture
def steps(manifest_facts):
    (export,) = manifest_facts()["history"]
    both = {name: Metric(value=value, low=0, high=1) for name, value in (("accuracy", 0.87654), ("macro_f1", 0.5))}
    train = export.model_copy(
        update={
            "stage": "train",
            "method": "full",
            "seconds": 151.4,
            "parameters": 22_713_986,
            "bytes": 90_866_432,
            "p50_ms": 12.345,
            "metrics": {"validation": {"accuracy": Metric(value=0.1, low=0, high=1)}, "test": both},
        }
    )
    return (train, export.model_copy(update={"metrics": train.metrics}))


def test_no_stage_gives_no_row():
    assert tables.rows(()) == []


def test_the_header_names_the_first_metric_and_has_a_title_for_each_cell(steps):
    header = tables.header(steps)
    assert header == ("stage", "seconds", "parameters", "bytes", "test accuracy", "p50, batch 1")
    assert {len(row) for row in tables.rows(steps)} == {len(header)}


def test_a_row_shows_what_the_stage_measured_on_the_test_split(steps):
    assert tables.rows(steps) == [
        ("train (full)", "151", "22,713,986", "90,866,432", "0.8765", "12.3 ms"),
        ("export", "2", "1,000", "4,000", "0.8765", "1.0 ms"),
    ]


def test_a_time_of_a_busy_machine_says_so(steps):
    busy, quiet = (steps[0].model_copy(update={"waited_share": share}) for share in (0.06, 0.04))
    assert [row[-1] for row in tables.rows((busy, quiet))] == ["12.3 ms, busy", "12.3 ms"]


def test_a_stage_that_was_skipped_shows_what_is_given_for_its_seconds(steps):
    assert [row[1] for row in tables.rows(steps, {"train": "skipped"})] == ["skipped", "2"]
