import csv
import json
import re

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from deploykit.data import sources
from deploykit.errors import DataError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def values(table):
    return [(row.line, row.values) for row in table.rows]


def broken(table):
    return [(found.line, found.why) for found in table.broken]


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path):
    write(tmp_path / "train.jsonl", "")
    with pytest.raises(DataError, match=r"there is no file .*/trian\.jsonl \(did you mean 'train\.jsonl'\?\)\. Paths"):
        sources.read(str(tmp_path / "trian.jsonl"))


def test_a_missing_file_in_a_missing_directory(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*/nowhere/a\.csv\. Paths in a recipe start from"):
        sources.read(str(tmp_path / "nowhere" / "a.csv"))


def test_a_directory_is_no_file(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match=r"a\.csv is a directory, expected a file \(csv, tsv, jsonl"):
        sources.read(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["rows.txt", "rows.CSV", "rows"])
def test_an_unknown_format_lists_the_known_ones(tmp_path, name):
    with pytest.raises(DataError, match=r"in a format that is not read\. Give a file that ends in csv, tsv, jsonl"):
        sources.read(write(tmp_path / name, "text,label\n"))


def test_a_path_with_an_unknown_format_is_not_looked_up_on_the_hub(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match="format that is not read"):
        sources.read("./reviews/train.xlsx")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_bytes_that_are_not_utf8_are_located(tmp_path, name):
    content = "text,label\ngood é,1\n".encode() + "caf\xe9,0\n".encode("latin-1")
    offset = content.index(b"\xe9,")
    message = rf"{re.escape(name)} is not UTF-8: byte 0xe9 at offset {offset}, line 3\. Save it as UTF-8.*iconv"
    with pytest.raises(DataError, match=message):
        sources.read(write(tmp_path / name, content))


def test_a_column_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv, line 1: the column 'text' stands there twice"):
        sources.read(write(tmp_path / "a.csv", "text,label,text\na,b,c\n"))


def test_a_header_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv, line 1: the names of the columns cannot be read: unexpected end"):
        sources.read(write(tmp_path / "a.csv", '"text,label\na,b\n'))


def test_a_json_list_is_refused_with_the_way_to_convert_it(tmp_path):
    with pytest.raises(DataError, match=r"is one JSON list, expected one object a line\. Convert it with: jq -c"):
        sources.read(write(tmp_path / "a.json", '[{"text": "a"}]'))


def test_a_damaged_parquet_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.parquet is no parquet file that can be read: "):
        sources.read(write(tmp_path / "a.parquet", b"PAR1 and then nothing"))


def test_a_file_without_permission_says_so(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv", "text\n")

    def refuse(_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(DataError, match=r"a\.csv cannot be read: Permission denied\. Check its permissions"):
        sources.read(path)


def test_csv_rows_with_too_few_or_too_many_fields_are_kept_as_complaints(tmp_path):
    table = sources.read(write(tmp_path / "a.csv", "text,label\na,1\nb\nc,1,2\nd,0\n"))
    assert values(table) == [(2, {"text": "a", "label": "1"}), (5, {"text": "d", "label": "0"})]
    assert broken(table) == [
        (3, "the number of fields is 1, expected 2 (text, label)"),
        (4, "the number of fields is 3, expected 2 (text, label)"),
    ]


def test_csv_after_a_broken_quotation_is_read_on(tmp_path):
    table = sources.read(write(tmp_path / "a.csv", 'text,label\n"a"b,1\nc,0\n"never closed,1\nd,0\n'))
    assert values(table) == [(3, {"text": "c", "label": "0"})]
    assert [line for line, _ in broken(table)] == [2, 4]
    assert all(why.endswith("is a quotation mark missing or not doubled?") for _, why in broken(table))


def test_csv_lines_are_those_on_which_rows_start(tmp_path):
    content = 'text,label\r\n"two\r\nlines, ""quoted""",1\r\n\r\nnext,0\r\n"three\n\n lines",1\n'
    assert values(sources.read(write(tmp_path / "a.csv", content))) == [
        (2, {"text": 'two\r\nlines, "quoted"', "label": "1"}),
        (5, {"text": "next", "label": "0"}),
        (6, {"text": "three\n\n lines", "label": "1"}),
    ]


def test_csv_fields_may_be_long_and_the_global_limit_stays(tmp_path):
    before = 131_072
    csv.field_size_limit(before)
    table = sources.read(write(tmp_path / "a.csv", f"text,label\n{'x' * 200_000},1\n"))
    assert len(table.rows[0].values["text"]) == 200_000
    assert csv.field_size_limit() == before


def test_tsv_keeps_commas_and_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    table = sources.read(write(tmp_path / "a.tsv", "\ufefftext\tlabel\na, b\t1\n"))
    assert (table.columns, values(table)) == (("text", "label"), [(2, {"text": "a, b", "label": "1"})])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    assert values(sources.read(write(tmp_path / name, ""))) == []


def test_json_lines_that_are_no_objects_are_kept_as_complaints(tmp_path):
    content = '{"text": "a"}\n{"text": \n\n[1, 2]\n' + "[" * 100_000 + '\n{"text": "b"}\n'
    table = sources.read(write(tmp_path / "a.jsonl", content))
    assert values(table) == [(1, {"text": "a"}), (6, {"text": "b"})]
    assert [line for line, _ in broken(table)] == [2, 4, 5]
    assert broken(table)[0][1].startswith("no JSON (Expecting value")
    assert broken(table)[1][1] == "JSON of type list, expected an object with the columns"


def test_a_line_separator_inside_json_does_not_count_as_a_line(tmp_path):
    rows = [{"text": "one\u2028text\x85"}, {"text": "b", "label": 1}]
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table = sources.read(write(tmp_path / "a.json", content))
    assert values(table) == [(1, rows[0]), (2, rows[1])]
    assert (table.columns, table.unit) == (("text", "label"), "line")


def test_parquet_counts_rows_and_keeps_lists(tmp_path):
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}, {"tokens": ["c"], "tags": ["O"]}]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    table = sources.read(str(tmp_path / "a.parquet"))
    assert (table.unit, table.columns, values(table)) == ("row", ("tokens", "tags"), [(1, rows[0]), (2, rows[1])])


def test_what_the_hub_refuses_is_passed_on_with_what_was_expected(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    message = r"the split 'train' of the data set 'owner/reviews' could not be loaded: Couldn't reach .* a network"
    with pytest.raises(DataError, match=message):
        sources.read("owner/reviews")


def test_the_hub_gives_names_for_classes_and_a_pinned_revision(monkeypatch):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    rows = {"text": ["a", "b"], "label": [1, -1], "tags": [[0, 1], []]}
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = sources.read("owner/reviews@abc123", "dev")
    assert asked == [("owner/reviews", {"split": "dev", "revision": "abc123"})]
    assert table.name == "owner/reviews@abc123[dev]"
    assert values(table) == [
        (1, {"text": "a", "label": "good", "tags": ["O", "B-X"]}),
        (2, {"text": "b", "label": None, "tags": []}),
    ]
