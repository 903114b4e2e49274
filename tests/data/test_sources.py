import bz2
import csv
import gzip
import io
import json
import lzma
import re

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit import data
from deploykit.data import files, sources
from deploykit.errors import DataError
from deploykit.recipe import DataSection


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def values(table):
    return [(row.place, row.values) for row in table.rows]


def broken(table):
    return [(found.place, found.reason) for found in table.broken_rows]


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


@pytest.mark.parametrize("name", ["rows.txt", "rows.xlsx", "rows", "rows.txt.gz"])
def test_an_unknown_format_lists_the_known_ones(tmp_path, name):
    with pytest.raises(DataError, match=r"in a format that is not read\. Give a file that ends in csv, tsv, jsonl"):
        sources.read(write(tmp_path / name, "text,label\n"))


def test_a_path_with_an_unknown_format_is_not_looked_up_on_the_hub(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match=r"there is no file reviews/train\.xlsx\. Paths"):
        sources.read("./reviews/train.xlsx")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_bytes_that_are_not_utf8_are_located(tmp_path, name):
    content = "text,label\ngood é,1\n".encode() + "caf\xe9,0\n".encode("latin-1")
    offset = content.index(b"\xe9,")
    message = rf"{re.escape(name)} is not UTF-8: byte 0xe9 at offset {offset}, line 3\. Save .* iconv -f WINDOWS-1252"
    with pytest.raises(DataError, match=message):
        sources.read(write(tmp_path / name, content))


def test_a_column_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv, line 1: the column 'text' occurs twice"):
        sources.read(write(tmp_path / "a.csv", "text,label,text\na,b,c\n"))


def test_a_header_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv, line 1: the names of the columns cannot be read: unexpected end"):
        sources.read(write(tmp_path / "a.csv", '"text,label\na,b\n'))


def test_a_json_list_in_a_file_of_lines_is_refused_with_what_to_write(tmp_path):
    with pytest.raises(DataError, match=r"is one JSON list, expected one object per line\. Rename it .* data\.format"):
        sources.read(write(tmp_path / "a.jsonl", '[{"text": "a"}]'))


def test_a_damaged_parquet_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet: "):
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


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('text,label\na,neg\n"b,pos\nc,neg\nd",pos\ne,neg\n', 3),
        ('text,label\n"a,neg\nb,pos\nc,neg\nd",pos\n', 2),  # no other row tells which labels there are
        ('label,text\nneg,a\npos,"b\nneg,c\npos,d"\n', 3),
        ('text,label\na,neg\n"b,pos\n\nc",neg\nd,pos\n', 3),
        ('id,text,label\n1,a,neg\n2,"b,pos\n3,c",neg\n4,d,pos\n', 3),
        ('text;label\na, b;neg\n"c;neg\nd, e;pos\nf";pos\n', 3),
    ],
)
def test_a_field_that_swallowed_rows_is_a_complaint(tmp_path, content, line):
    (complaint,) = broken(sources.read(write(tmp_path / "a.csv", content)))
    assert complaint[0] == line
    assert re.fullmatch(
        r"a field runs on to line \d+, and its lines read like rows of their own; is a quotation mark missing or not"
        r" doubled\?",
        complaint[1],
    )


def test_quoted_texts_of_several_lines_are_no_complaint(tmp_path):
    letter = "Dear Sir,\nI write, and hope, that it is well\n\nYours, Anna"
    verses = "over the sea, and away\nunder the tree, and away\nnever to stay"
    rows = [(letter, "neg"), (verses, "pos"), ("fine", "neg"), ("two\nlines", "pos")] * 2
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    table = sources.read(str(tmp_path / "a.csv"))
    assert broken(table) == []
    assert [(row.values["text"], row.values["label"]) for row in table.rows] == rows


def test_quotation_marks_of_a_tsv_are_characters(tmp_path):
    content = 'text\tlabel\n"never closed\tneg\nsaid "so", and left\tpos\nclosed"\tneg\n'
    assert values(sources.read(write(tmp_path / "a.tsv", content))) == [
        (2, {"text": '"never closed', "label": "neg"}),
        (3, {"text": 'said "so", and left', "label": "pos"}),
        (4, {"text": 'closed"', "label": "neg"}),
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
    assert broken(table)[0][1].startswith("not JSON (Expecting value")
    assert broken(table)[1][1] == "JSON of type list, expected an object with the columns"


def test_a_line_separator_inside_json_does_not_count_as_a_line(tmp_path):
    rows = [{"text": "one\u2028text\x85"}, {"text": "b", "label": 1}]
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table = sources.read(write(tmp_path / "a.json", content))
    assert values(table) == [(1, rows[0]), (2, rows[1])]
    assert (table.columns, table.place_unit) == (("text", "label"), "line")


def test_parquet_counts_rows_and_keeps_lists(tmp_path):
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}, {"tokens": ["c"], "tags": ["O"]}]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    table = sources.read(str(tmp_path / "a.parquet"))
    assert (table.place_unit, table.columns, values(table)) == ("row", ("tokens", "tags"), [(1, rows[0]), (2, rows[1])])


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


# compression, encodings, names

ROWS = [{"text": "größe, 我", "label": "a"}, {"text": "b", "label": "b"}]
CSV = 'text,label\n"größe, 我",a\nb,b\n'


@pytest.mark.parametrize("name", ["TRAIN.CSV", "train.Csv", "a.b.csv", "A.CSV.GZ"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path, name):
    content = gzip.compress(CSV.encode()) if name.endswith("GZ") else CSV
    assert [row.values for row in sources.read(write(tmp_path / name, content)).rows] == ROWS


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)],
    ids=["gz", "bz2", "xz"],
)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_compressed_files_are_read(tmp_path, kind, suffix, compress):
    content = {
        "csv": CSV.encode(),
        "tsv": CSV.replace('"', "").replace(",a", "\ta").replace("b,b", "b\tb").replace("text,", "text\t").encode(),
        "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    }
    content["json"] = content["jsonl"]
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), whole := io.BytesIO())
    content["parquet"] = whole.getvalue()
    table = sources.read(write(tmp_path / f"a.{kind}.{suffix}", compress(content[kind])))
    assert [row.values for row in table.rows] == ROWS


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_damaged_compressed_file_is_refused(tmp_path, suffix):
    with pytest.raises(DataError, match=rf"a\.csv\.{suffix} cannot be read as {suffix}: "):
        sources.read(write(tmp_path / f"a.csv.{suffix}", b"text,label\n"))
    content = {"gz": gzip, "bz2": bz2, "xz": lzma}[suffix].compress(CSV.encode() * 9)[:-9]
    with pytest.raises(DataError, match=rf"a\.csv\.{suffix} cannot be read as {suffix}: "):
        sources.read(write(tmp_path / f"a.csv.{suffix}", content))


def test_a_path_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.csv", CSV)
    assert [row.values for row in sources.read("~/a.csv").rows] == ROWS
    assert len(sources.read_texts("~/a.csv")) == 4
    assert data.fingerprint(DataSection(train="~/a.csv"), 0) == data.fingerprint(
        DataSection(train=str(tmp_path / "a.csv")), 0
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_file_with_a_byte_order_mark_is_read_in_its_encoding(tmp_path, encoding, name):
    text = CSV if name == "a.csv" else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    mark = "\ufeff" if encoding.endswith(("-le", "-be")) else ""
    table = sources.read(write(tmp_path / name, (mark + text).encode(encoding)))
    assert (table.columns, [row.values for row in table.rows]) == (("text", "label"), ROWS)


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("text", [CSV, "文,标\n" + "我住在北京市的一个小区里,好\n" * 9], ids=["german", "chinese"])
def test_what_seems_to_be_utf16_without_a_mark_is_refused_with_the_way_to_convert_it(tmp_path, encoding, text):
    path = write(tmp_path / "a.csv", text.encode(encoding))
    with pytest.raises(
        DataError, match=rf"a\.csv is not UTF-8 but, by its NUL bytes, {encoding} .*: iconv -f {encoding}"
    ):
        sources.read(path)


def test_a_file_that_breaks_off_after_its_mark_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv begins with the byte order mark of UTF-16LE and is damaged: "):
        sources.read(write(tmp_path / "a.csv", CSV.encode("utf-16")[:-1]))


# what is written comes back

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
PRINTED = CELLS.filter(lambda cell: not set(cell) & set("\t\r\n") and not cell.startswith("\ufeff"))


def table_of(folder, name, content):
    return sources.read(write(folder / name, content))


@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=5), mark=st.sampled_from(",;"))
def test_what_the_csv_module_writes_comes_back(tmp_path_factory, rows, mark):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=mark).writerows([("text", "label"), *rows])
    found = table_of(tmp_path_factory.getbasetemp(), "a.csv", file.getvalue())
    if not found.broken_rows:  # rows that are drawn to look swallowed are a complaint
        assert [tuple(row.values.values()) for row in found.rows] == rows


@given(rows=st.lists(st.tuples(PRINTED, PRINTED), max_size=5), end=st.sampled_from(["\n", "\r\n"]))
def test_what_is_written_between_tabs_comes_back(tmp_path_factory, rows, end):
    content = end.join("\t".join(row) for row in [("text", "label"), *rows])
    found = table_of(tmp_path_factory.getbasetemp(), "a.tsv", content)
    assert [tuple(row.values.values()) for row in found.rows] == rows


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | CELLS, lambda inner: st.lists(inner, max_size=3))


@given(rows=st.lists(st.dictionaries(CELLS, VALUES, max_size=3), max_size=5), readable=st.booleans())
def test_what_is_written_as_json_lines_comes_back(tmp_path_factory, rows, readable):
    content = "".join(json.dumps(row, ensure_ascii=not readable) + "\n" for row in rows)
    found = table_of(tmp_path_factory.getbasetemp(), "a.jsonl", content)
    assert ([row.values for row in found.rows], found.broken_rows) == (rows, ())


MARKS = {"utf-8": "", "utf-8-sig": ""} | dict.fromkeys(("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"), "\ufeff")
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@given(text=CELLS, encoding=st.sampled_from(sorted(MARKS)), suffix=st.sampled_from(sorted(COMPRESS)))
def test_any_text_comes_back_from_every_encoding_and_compression(tmp_path_factory, text, encoding, suffix):
    path = tmp_path_factory.getbasetemp() / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix]((MARKS[encoding] + text).encode(encoding)))
    assert files.read_text(path) == (text.removeprefix("\ufeff") if encoding == "utf-8" else text)


COLUMN = st.lists(CELLS | st.none(), min_size=3, max_size=3) | st.lists(st.integers(-9, 9), min_size=3, max_size=3)


@given(columns=st.dictionaries(CELLS, COLUMN, min_size=1, max_size=3))
def test_what_is_written_as_parquet_comes_back(tmp_path_factory, columns):
    path = tmp_path_factory.getbasetemp() / "a.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    table = sources.read(str(path))
    expected = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert (table.columns, values(table)) == (tuple(columns), list(enumerate(expected, start=1)))
