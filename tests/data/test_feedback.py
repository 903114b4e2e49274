"""Records and feedback become labelled rows: by client, request, place and order."""

import json

import pytest

from deploykit.data import sources
from deploykit.data.feedback import join, tabulate, write
from deploykit.errors import DataError


def record(time, request="r", client="alice", index=0, label="a", text="some text", **more):
    content = {"kind": "prediction", "time": f"2026-01-01T00:00:{time:02}", "id": request, "index": index}
    return {**content, "client": client, "model": "m", "version": "1", "text": text, "label": label, **more}


def feedback(time, label, request="r", client="alice", index=0):
    content = {"kind": "feedback", "time": f"2026-01-01T00:00:{time:02}", "id": request, "index": index}
    return {**content, "client": client, "model": "m", "version": "1", "label": label, "comment": None}


@pytest.fixture
def joined(tmp_path):
    """`joined(*files) -> Found`, of lists of events."""

    def write(*files):
        for number, events in enumerate(files):
            lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
            (tmp_path / f"records-{number}.jsonl").write_text(lines)
        return join(tmp_path)

    return write


def test_a_folder_without_records(tmp_path):
    with pytest.raises(DataError, match=r"holds no records.*DEPLOYKIT_RECORDS"):
        join(tmp_path)


def test_only_what_has_feedback_becomes_a_row(joined):
    found = joined([record(1), record(2, index=1, text="other"), feedback(3, "b", index=1)])
    assert found.rows == [{"text": "other", "label": "b"}]
    assert (found.prediction_counts["m 1"], found.judged_counts["m 1"], found.correct_counts["m 1"]) == (2, 1, 0)


def test_the_last_word_counts_whatever_the_order_of_the_files(joined):
    found = joined([feedback(5, "b"), feedback(4, "a")], [record(1)])
    assert found.rows == [{"text": "some text", "label": "b"}]


def test_an_id_that_is_used_again_means_the_answer_before(joined):
    found = joined([record(1, text="first"), feedback(2, "b"), record(3, text="second"), feedback(4, "c")])
    assert found.rows == [{"text": "first", "label": "b"}, {"text": "second", "label": "c"}]


def test_nobody_corrects_another(joined):
    found = joined([record(1), feedback(2, "b", client="mallory"), feedback(2, "b", request="other")])
    assert (found.rows, found.unmatched_feedback) == ([], 2)


def test_lines_that_are_none_are_counted(joined, tmp_path):
    (tmp_path / "records-x.jsonl").write_bytes(b'{"kind": "prediction"}\n[1]\n\xff\xfe\n{"kind": "predic')
    assert joined([record(1), feedback(2, "a")]).broken_lines == 4


def test_separators_inside_a_text_do_not_end_it(joined):
    text = "one\u2028two\x85three\x0cfour"
    assert joined([record(1, text=text), feedback(2, "a")]).rows[0]["text"] == text


def test_rows_are_what_a_recipe_reads(joined, tmp_path):
    text, second = "über\u2028 zwei", record(3, text_pair="too", index=1)
    found = joined([record(1, text=text), feedback(2, "b"), second, feedback(4, "a", index=1)])
    write(found, tmp_path / "rows.jsonl")
    assert [row.values for row in sources.read(str(tmp_path / "rows.jsonl")).rows] == [
        {"text": text, "label": "b"},
        {"text": "some text", "text_pair": "too", "label": "a"},
    ]


def test_accuracy_by_version_with_its_interval(joined):
    events = [record(1, request=f"r{number}") for number in range(10)]
    events += [feedback(2, "a" if number else "b", request=f"r{number}") for number in range(10)]
    found = joined([*events, record(1, request="x", version="2")])
    assert tabulate(found) == [
        ("m 1", "10", "10", "0.9000 (0.5958 to 0.9821)"),
        ("m 2", "1", "0", "none given"),
    ]


def test_records_of_other_tasks_are_counted_and_become_no_rows(joined):
    question = record(0, label="")
    del question["text"], question["label"]
    found = joined([{**question, "question": "where ?", "context": "here"}, feedback(1, "here")])
    assert (found.rows, found.broken_lines, dict(found.prediction_counts)) == ([], 0, {"m 1": 1})
