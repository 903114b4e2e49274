"""Errors about wrong data name file and line and what was expected: a table over all formats and tasks."""

import gzip
import json
import re

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from deploykit import data, tasks
from deploykit.errors import DataError
from deploykit.recipe import DataSection

TEXT, TOKEN = tasks.load("text-classification"), tasks.load("token-classification")
ADVICE = re.compile(
    r"expected|Expected|Correct or remove|Add |Name |Give |Remove|Save |Convert |Compress |Write or |Paths in a recipe"
)
CASES = []


def case(name, file, content, place, why, task=TEXT, **options):
    """Adds a file, the line or row that the message names (None if it is about the whole file), and what it says."""
    values = (file, content, place, why, task, options)
    CASES.append(pytest.param(*values, id=f"{file.partition('.')[2] or file}: {name}"))


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(rows):
    pa.parquet.write_table(pa.Table.from_pylist(rows), file := pa.BufferOutputStream())
    return file.getvalue().to_pybytes()


GOOD = "text,label\ngood,1\n"
A, B = {"text": "a", "label": "x"}, {"text": "b", "label": "y"}

case("too few fields", "a.csv", f"{GOOD}bad\n", "line 3", r"the number of fields is 1, expected 2 \(text, label\)")
case("too many fields", "a.csv", f"{GOOD}bad,0,more\n", "line 3", "the number of fields is 3, expected 2")
case("a semicolon missing", "a.csv", "text;label\na;1\nb\n", "line 3", "the number of fields is 1, expected 2")
case("no text", "a.csv", f"{GOOD},0\n", "line 3", "'text' is '', expected a text that is not empty")
case("white text", "a.csv", f"{GOOD}  ,0\n", "line 3", "'text' is '  ', expected a text that is not empty")
case("no label", "a.csv", f"{GOOD}bad,\n", "line 3", "the label is '', expected a word or a whole number")
case("quotation not closed", "a.csv", f'{GOOD}"bad,0\n', "line 3", "is a quotation mark missing or not doubled")
case("quotation within", "a.csv", f'{GOOD}"b"ad,0\n', "line 3", "is a quotation mark missing or not doubled")
case("swallowed rows", "a.csv", f'{GOOD}"b,1\nc,0\nd",1\ne,0\n', "line 3", "a field runs on to line 5")
case("a column twice", "a.csv", "text,text\na,b\n", "line 1", "the column 'text' occurs twice. Give each its own name")
case("no header", "a.csv", '"text,label\n', "line 1", "the names of the columns cannot be read")
case("another column", "a.csv", "texts,label\na,b\n", None, r"no column 'text' \(did you mean 'texts'\?\).* data\.text")
case("no column label", "a.csv", "text,y\na,b\n", None, r"no column 'label'. It has: text, y. Name the right one")
case("latin-1", "a.csv", f"{GOOD}caf\xe9,0\n".encode("latin-1"), "line 3", "is not UTF-8: byte 0xe9")
case("utf-16", "a.csv", (GOOD * 9).encode("utf-16-le"), None, "by its NUL bytes, UTF-16LE .* Convert it with: iconv")
case("empty", "a.csv", "", None, r"the train split is empty \(.*a\.csv holds no rows for it\). Add rows")
case("header only", "a.csv", "text,label\n", None, "the train split is empty .* Add rows")
case(
    "one label",
    "a.csv",
    GOOD + "".join(f"good {n},1\n" for n in range(20)),
    None,
    "has only one label, 1 .* at least two",
)
case("damaged gzip", "a.csv.gz", gzip.compress(GOOD.encode())[:-5], None, "cannot be read as gz: .* Compress it again")
case("not gzip", "a.csv.gz", GOOD, None, "cannot be read as gz: .* Compress it again")
case("a tab missing", "a.tsv", "text\tlabel\na\t1\nb\n", "line 3", "the number of fields is 1, expected 2")
case("commas for tabs", "a.tsv", "text,label\na,1\n", None, "no column 'text'.* It has: text,label. Name the right one")
case("empty label of a tsv", "a.tsv", "text\tlabel\na\t \n", "line 2", "the label is ' ', expected a word")
case("tokens in a csv", "a.csv", "tokens,tags\na b,O O\n", "line 2", "tokens and tags must be lists", TOKEN)

case("not JSON", "a.jsonl", lines(A) + '{"text": \n', "line 2", "not JSON .*, expected an object with the columns")
case("single quotes", "a.jsonl", lines(A) + "{'text': 'b'}\n", "line 2", "not JSON .*, expected an object")
case("a list on a line", "a.jsonl", lines(A, ["b", "y"]), "line 2", "JSON of type list, expected an object")
case(
    "a list of all rows",
    "a.jsonl",
    json.dumps([A, B]),
    None,
    r"is one JSON list, expected one object per line\. Rename",
)
case("null for a text", "a.jsonl", lines(A, {**B, "text": None}), "line 2", "'text' is None, expected a text")
case("a number for a text", "a.jsonl", lines(A, {**B, "text": 5}), "line 2", "'text' is 5, expected a text")
case("a column left out", "a.jsonl", lines(A, {"text": "b"}), "line 2", "has no 'label'")
case(
    "a decimal label",
    "a.jsonl",
    lines(A, {**B, "label": 0.5}),
    "line 2",
    "the label is 0.5, expected a word or a whole",
)
case("an object as label", "a.jsonl", lines(A, {**B, "label": {}}), "line 2", "the label is {}, expected a word")
case("half a character", "a.jsonl", lines(A, {**B, "text": "\ud800"}), "line 2", "half of a surrogate pair")
case("a pair without one", "a.jsonl", lines({**A, "second": ""}), "line 1", "'second' is ''", text_pair="second")
case("after a blank line", "a.jsonl", f"{lines(A)}\n\n{lines({})}", "line 4", "has no 'label'")

case("a comma missing", "a.json", '[{"text": "a"}\n{"text": "b"}]', "line 2", r"not JSON .* expected a list of objects")
case("cut off", "a.json", '[{"text": "a"},\n', "line 2", "not JSON .* expected a list of objects.* Correct the file")
case("more after the list", "a.json", "[]\n{}", "line 2", "not JSON .*Extra data.* expected a list of objects")
case("a list in the list", "a.json", json.dumps([A, ["b"]]), "row 2", "JSON of type list, expected an object")
case(
    "an object of columns", "a.json", json.dumps({"text": ["a"]}, indent=1), None, "is one JSON object .* Save the rows"
)
case("no text in a list", "a.json", json.dumps([A, {**B, "text": ""}]), "row 2", "'text' is '', expected a text")
case("too deep", "a.json", "[" * 100_000, None, r"cannot be read as a JSON list .* Expected")

case("damaged", "a.parquet", b"PAR1 and no more", None, "cannot be read as parquet: .* Write or download it again")
case("null", "a.parquet", parquet([A, {**B, "text": None}]), "row 2", "'text' is None, expected a text")
case("no column", "a.parquet", parquet([{"text": "a", "labels": "x"}]), None, r"did you mean 'labels'\?")
case(
    "files of two splits",
    "d",
    {"train-0.parquet": parquet([A]), "test-0.parquet": parquet([B])},
    None,
    "several splits",
)
case("row of a file", "d", {"b.parquet": parquet([A, {**B, "text": " "}])}, r"row b\.parquet:2", "'text' is ' '")
case("damaged file", "d", {"b.parquet": b"PAR1"}, None, r"d/b\.parquet cannot be read as parquet: ")
case(
    "nothing that is read",
    "d",
    {"notes.md": "x"},
    None,
    "d is a directory, expected a file .* or a directory of parquet",
)
case("directories below", "d", {"train/a.txt": "x", "train/a.ann": ""}, None, "Directories below it are not read: name")
case("two formats", "d", {"a.ann": "", "a.parquet": parquet([A])}, None, r"could be any of: parquet, brat\. Name")
case(
    "json as its format",
    "d",
    {"a.json": "[]"},
    None,
    "is a directory, expected a file for data.format: json",
    format="json",
)
case(
    "damaged saved data",
    "d",
    {"state.json": "{}", "dataset_info.json": "{}"},
    None,
    "cannot be read as a data set that",
)
case("a file as brat", "a.txt", "x", None, "is a file, expected a directory for data.format: brat", format="brat")
case("unknown suffix", "a.xlsx", "x", None, r"in a format that is not read\. Give a file .* or name its format")

TOKENS = {"tokens": ["Anna", "left"], "tags": ["B-PER", "O"]}
case("no list", "a.jsonl", lines(TOKENS, {**TOKENS, "tokens": "Anna left"}), "line 2", "must be lists", TOKEN)
case("no tokens", "a.jsonl", lines(TOKENS, {"tokens": [], "tags": []}), "line 2", "must be lists, and not empty", TOKEN)
case("a tag missing", "a.jsonl", lines(TOKENS, {**TOKENS, "tags": ["O"]}), "line 2", "2 tokens and 1 tags, exp", TOKEN)
case(
    "an empty token", "a.jsonl", lines({**TOKENS, "tokens": ["Anna", ""]}), "line 1", "a token is empty or not a", TOKEN
)
case(
    "an empty tag", "a.jsonl", lines({**TOKENS, "tags": ["O", None]}), "line 1", "a tag is empty or not a string", TOKEN
)
case("white tokens", "a.jsonl", lines({**TOKENS, "tokens": [" ", " "]}), "line 1", "all tokens are white space", TOKEN)
case(
    "two schemes",
    "a.jsonl",
    lines(TOKENS, {**TOKENS, "tags": ["PER", "O"]}),
    "line 2",
    "the tag 'PER' has no prefix",
    TOKEN,
)
case("no tags", "a.jsonl", lines({"tokens": ["a"], "ner": ["O"]}), None, "no column 'tags'.* Name the right one", TOKEN)


def spans(name, text, *parts, place="line 1", why):
    rows = lines({"text": text, "spans": [dict(zip(("start", "end", "label"), part, strict=True)) for part in parts]})
    case(name, "a.jsonl", rows, place, why, TOKEN, spans="spans")


spans("a span beyond", "Anna left", (0, 40, "PER"), why="does not lie in a text of 9 characters")
spans("a span of nothing", "Anna left", (4, 4, "PER"), why="does not lie in a text of 9 characters")
spans("a span without label", "Anna left", (0, 4, ""), why="has no label")
spans("a part of a word", "Anna left", (0, 3, "PER"), why="ends inside the word 'Anna', expected whole words")
spans("spans that overlap", "Anna Lee left", (0, 8, "PER"), (5, 8, "X"), why="overlap, expected one label per word")
spans("a white span", "Anna  left", (4, 6, "PER"), why="covers no word of the text, expected at least one")
case(
    "spans as text",
    "a.jsonl",
    lines({"text": "a", "spans": "0-1"}),
    "line 1",
    "expected a list of",
    TOKEN,
    spans="spans",
)

CONLL = "Anna B-PER\nleft O\n\n"
case("a column missing", "a.conll", f"{CONLL}Ben B-PER\nleft\n", "line 5", "columns is 1, expected 2", TOKEN)
case("a column more", "a.conll", f"{CONLL}Ben Lee B-PER\nleft O\n", "line 4", "columns is 3, expected 2", TOKEN)
case("a space for a tab", "a.bio", "Anna\tB-PER\nleft O\n\nBen\tB-PER\n", "line 2", "columns is 1, expected 2", TOKEN)
case("a comment inside", "a.iob", "Anna B-PER\n# no\nleft by car O\n", "line 3", "columns is 4, expected 2", TOKEN)
case("one column", "a.conll", "Anna\nleft\n", "line 1", "there is one column, expected a token and its tag", TOKEN)
case(
    "numbers first",
    "a.conll",
    "1\tAnna\tB-PER\n2\tleft\tO\n",
    "line 1",
    "counts the tokens, .* Remove the column",
    TOKEN,
)
case("no token", "a.conll", "Anna\tB-PER\n\tO\n", "line 2", "the token or its tag is empty, expected", TOKEN)
case("no tag", "a.conll", "Anna\tB-PER\nleft\t\n", "line 2", "the token or its tag is empty, expected", TOKEN)
case("a comment or a token", "a.conll", f"{CONLL}#fine day\n", "line 4", "a comment or a token", TOKEN)
case("another scheme", "a.conll", f"{CONLL}Ben PER\n", "line 4", "the tag 'PER' has no prefix", TOKEN)
case("latin-1", "a.conll", b"Ren\xe9 B-PER\n", "line 1", "is not UTF-8: byte 0xe9", TOKEN)
case("plain text", "a.txt", "Anna left.\n\nAnna\n", "line 3", "columns is 1, expected 2", TOKEN, format="conll")
WORD = "1\tAnna\tAnna\tPROPN\t_\t_\t0\troot\t_\t_\n"
case(
    "nine columns", "a.conllu", WORD + WORD[1:].replace("\t_\n", "\n"), "line 2", "columns is 9, expected the 10", TOKEN
)
case("a wrong id", "a.conllu", f"{WORD}x{WORD[1:]}", "line 2", "the id is 'x', expected a number", TOKEN)
case("no UPOS", "a.conllu", WORD + WORD.replace("PROPN", "_"), "line 2", "column 4 is '_', expected .* UPOS", TOKEN)
case("columns of taggers", "a.conllu", CONLL, "line 1", "expected the 10 of CoNLL-U", TOKEN)

QA = {
    "id": "q7",
    "context": "Paris is a town.",
    "question": "Where?",
    "answers": {"text": ["town"], "answer_start": [11]},
}


def squad(name, why, place="line 2", **changes):
    row = {key: value for key, value in {**QA, **changes}.items() if value is not ...}
    case(f"SQuAD, {name}", "a.jsonl", lines(QA, row), place, why, text="question", label="id")


def answers(text, start):
    return {"text": text, "answer_start": start}


squad(
    "a wrong offset",
    "question 'q7' has the answer 'town', expected at offset 10 .* it is at 11",
    answers=answers(["town"], [10]),
)
squad("no such text", "'Rome', expected at offset 0 .* it is nowhere in the context", answers=answers(["Rome"], [0]))
squad("an offset as text", "expected at offset '11'", answers=[{"text": "town", "answer_start": "11"}])
squad("a negative offset", "expected at offset -5", answers=answers(["town"], [-5]))
squad("an empty answer", "expected one with text and answer_start", answers=[{"text": "", "start": 0}])
squad("answers without offsets", "has 2 answers and 1 offsets, expected as many", answers=answers(["a", "b"], [0]))
squad("answers of another shape", r"has the answers 'town', expected a list of", answers="town")
squad("no answers", "has the answers 'None', expected a list of", answers=...)
squad("a wrong offset without an id", r"the question 'Where\?' has the answer", id=None, answers=answers(["town"], [1]))
squad("an empty context", "'q7' has the context '', expected a text", context="")
squad("no question", "'q7' has the question None, expected a text", question=...)
squad("impossible with answers", "has answers although is_impossible is true, expected none", is_impossible=True)


def article(*paragraphs):
    return json.dumps({"data": [{"paragraphs": [{"context": QA["context"], "qas": [QA]}, *paragraphs]}]})


NESTED = {"text": "question", "label": "id"}
case("SQuAD, no qas", "a.json", article({"context": "x"}), "row 2", r"data\[0\]\.paragraphs\[1\] lacks", **NESTED)
case(
    "SQuAD, a question is no object", "a.json", article({"context": "x", "qas": [1]}), "row 2", r"qas\[0\] is", **NESTED
)
case("SQuAD, no paragraphs", "a.json", article()[:-2] + ", {}]}", "row 2", r"data\[1\] has no list `para", **NESTED)
case(
    "SQuAD, a wrong offset",
    "a.json",
    article({"context": "x", "qas": [QA]}),
    "row 2",
    "question 'q7' .* nowhere",
    **NESTED,
)
case("not SQuAD", "a.jsonl", lines(A), "line 1", "the question 'None' has the context None, expected", format="squad")

NOTE = "Anna met Ben in Rome."


def brat(name, ann, place, why, text=NOTE, files=None):
    files = {"a.txt": text, "a.ann": ann, "b.txt": "fine", "b.ann": ""} if files is None else files
    case(name, "brat", files, place and f"line {place}", why, TOKEN, spans="spans")


T1 = "T1\tPER 0 4\tAnna\n"
brat(
    "discontinuous",
    f"{T1}T2\tPER 0 4;9 12\tAnna Ben\n",
    r"a\.ann:2",
    "T2 is discontinuous .* expected one start .* split",
)
brat(
    "other text", "T1\tPER 1 5\tAnna\n", r"a\.ann:1", "is said to be 'Anna', but the text has 'nna '.* expected offsets"
)
brat(
    "beyond the text", f"{T1}T2\tPER 90 94\tAnna\n", r"a\.ann:2", "does not lie in its text of 21 characters, expected"
)
brat("no text beside it", "", r"b\.ann:1", r"expected b\.txt beside it", files={"b.ann": "", "a.txt": "x", "a.ann": ""})
brat("no annotations", "", r"b\.txt:1", r"expected b\.ann beside it", files={"b.txt": "x", "a.txt": "x", "a.ann": ""})
brat("a relation to nothing", f"{T1}R1\tKnows Arg1:T1 Arg2:T9\n", r"a\.ann:2", "'Knows' refers to 'T9', expected .*T1")
brat("a malformed relation", f"{T1}R1\tKnows T1 T1\n", r"a\.ann:2", "the relation is .*, expected: id, tab, LABEL Arg1")
brat("an event without trigger", f"{T1}E1\tMeet:T9 Who:T1\n", r"a\.ann:2", "has the trigger 'T9', expected the id")
brat("an argument that is not there", f"{T1}E1\tMeet:T1 Who:T9\n", r"a\.ann:2", "'Who' refers to 'T9', expected the id")
brat("a malformed event", f"{T1}E1\tMeet\n", r"a\.ann:2", "the event is .*, expected: id, tab, LABEL:TRIGGER")
brat("an id twice", f"{T1}{T1}", r"a\.ann:2", "the id 'T1' occurs 2 times, expected ids that differ")
brat("spaces for tabs", "T1 PER 0 4 Anna\n", r"a\.ann:1", "the entity is .*, expected: id, tab, LABEL START END")
brat("no covered text", "T1\tPER 0 4\n", r"a\.ann:1", "has no text after its offsets, expected a tab and its text")
brat("an unknown kind", f"{T1}X1\tPER 0 4\n", r"a\.ann:2", "begins with 'X1', expected an id of T, R, E")
brat("an empty text", "", r"a\.ann:1", "the text beside it is empty, expected one with words", text=" ")
brat("a part of a word", "T1\tPER 0 3\tAnn\n", r"a\.txt:1", "ends inside the word 'Anna', expected whole words")
brat("nested entities", f"{T1}T2\tX 0 8\tAnna met\n", r"a\.txt:1", "overlap, expected one label per word")
brat("latin-1", b"T1\tPER 0 4\tRen\xe9\n", None, r"a\.ann is not UTF-8: byte 0xe9 .*, line 1\. Save it as UTF-8")

OK = {"text": "Anna left", "label": [[0, 4, "PER"]]}


def doccano(name, why, place="line 2", **row):
    case(f"Doccano, {name}", "a.jsonl", lines(OK, {"text": "Ben left", **row}), place, why, TOKEN, spans="spans")


def doccano_entities(name, why, entity, relation):
    first = {"id": 1, "start_offset": 0, "end_offset": 3, "label": "PER"}
    row = {"text": "Ben left", "entities": [first, entity], "relations": [relation]}
    case(f"Doccano, {name}", "a.jsonl", lines(row), "line 1", why, TOKEN, spans="spans")


SECOND, LINK = {"id": 2, "start_offset": 4, "end_offset": 8, "label": "ACT"}, {"from_id": 1, "to_id": 2, "type": "does"}
doccano("beyond the text", "from 0 to 40 does not lie in its text of 8 characters, expected", label=[[0, 40, "PER"]])
doccano("backwards", "from 3 to 0 does not lie in its text of 8 characters, expected", label=[[3, 0, "PER"]])
doccano("decimal offsets", "from 0.0 to 3 does not lie .* expected whole numbers", label=[[0.0, 3, "PER"]])
doccano("two values", r"a span is '\[0, 3\]', expected \[start, end, \"LABEL\"\]", label=[[0, 3]])
doccano("no name of a label", "the span 0-3 has the label None, expected a word", label=[[0, 3, None]])
doccano("no text", "the text is '', expected one that is not empty", text="", label=[])
doccano("neither labels nor entities", "there is no list of labels or entities, expected", label=None)
doccano("a part of a word", "ends inside the word 'Ben', expected whole words", label=[[0, 2, "PER"]])
doccano_entities("an entity is no object", "an entity is '5', expected an object with id, start_offset", 5, LINK)
doccano_entities("an entity without end", "from 4 to None does not lie", {**SECOND, "end_offset": None}, LINK)
doccano_entities("a relation to nothing", "'does' refers to 9, expected the id of a span", SECOND, {**LINK, "to_id": 9})
doccano_entities(
    "a relation is no object", r"a relation is '\[1, 2\]', expected an object with from_id", SECOND, [1, 2]
)
ONE, TWO = {"text": "a", "label": ["x"]}, {"text": "b", "label": ["x", "y"]}
case("Doccano, two labels", "a.jsonl", lines(ONE, TWO), "line 2", r"the label is \['x', 'y'\], expected a word")
case(
    "Doccano, no labels",
    "a.jsonl",
    lines(ONE, {"text": "b", "label": []}),
    "line 2",
    r"the label is \[\], expected a word",
)
case("Doccano, a word for a list", "a.jsonl", lines(ONE, B), "line 2", "the labels are 'y', expected a list of words")
case("not Doccano", "a.jsonl", lines({"text": "a"}), "line 1", "no list of labels or entities", format="doccano")


def result(kind, **value):
    return {"id": "r", "type": kind, "from_name": kind, "value": value}


CHOSEN = result("choices", choices=["x"])
LINKED = {"type": "relation", "from_id": "r", "to_id": "z", "labels": ["does"]}


def studio(name, why, *results, task=TEXT, fields=None, annotations=None):
    annotations = [{"result": list(results)}] if annotations is None else annotations
    good = {"data": {"text": "Ben left"}, "annotations": [{"result": [CHOSEN]}]}
    content = json.dumps([good, {"data": fields or {"text": "Anna left"}, "annotations": annotations}])
    options = {"spans": "spans"} if task is TOKEN else {}
    case(f"Label Studio, {name}", "a.json", content, "row 2", why, task, **options)


studio("no annotation", "there is no annotation that was not cancelled, expected", annotations=[])
studio("cancelled", "no annotation that was not cancelled", annotations=[{"was_cancelled": True, "result": [CHOSEN]}])
studio("no choice", "the label is None, expected a word")
studio("two choices", r"the label is \['x', 'y'\], expected a word", result("choices", choices=["x", "y"]))
studio("choices that are no list", "the choices are 'x', expected a list of words", result("choices", choices="x"))
studio("two texts", "the texts of `data` are: a, b; expected one", CHOSEN, fields={"a": "x", "b": "y"})
studio("no text", "the texts of `data` are: none; expected one", CHOSEN, fields={"image": 5})
studio("two ratings", "there are 2 ratings or numbers", *[result("rating", rating=1)] * 2)
studio("a task without data", "no `data` or no list of `annotations`, expected", fields=5)
studio("a region without labels", "has the labels None, expected a list", result("labels", start=0, end=4), task=TOKEN)
WRONG = result("labels", start=1, end=5, text="Anna", labels=["PER"])
studio("a region of other text", "is said to be 'Anna', but the text has 'nna ' there; expected", WRONG, task=TOKEN)
studio("a region beyond", "from 0 to 99 does not lie", result("labels", start=0, end=99, labels=["PER"]), task=TOKEN)
PERSON = result("labels", start=0, end=4, text="Anna", labels=["PER"])
studio("a relation to nothing", "'does' refers to 'z', expected the id of a span: 'r'", PERSON, LINKED, task=TOKEN)
studio("two labels of a region", "overlap, expected one label per word", PERSON, {**PERSON, "id": "s"}, task=TOKEN)
MINIMAL = {"text": "Anna left", "annotation_id": 1, "lead_time": 2.0, "ner": [PERSON["value"]]}


def minimal(name, why, **changes):
    content = json.dumps([MINIMAL, {**MINIMAL, **changes}])
    case(f"JSON-MIN, {name}", "a.json", content, "row 2", why, TOKEN, spans="spans")


minimal("two columns of regions", "there are regions in ner, pos, expected one such column", pos=MINIMAL["ner"])
minimal("a region of other text", "is said to be 'Anna', but the text has", ner=[WRONG["value"]])
minimal("no text", "expected one that is not empty", text=" ")

IMAGES = tasks.load("image-classification")
RED = IMAGES.EXAMPLES[0]
case("no file", "a.jsonl", lines(RED, {"image": "b.png", "label": "x"}), "line 2", r"b\.png cannot be read", IMAGES)
case("no image", "a.jsonl", lines(RED, {"image": "a.jsonl", "label": "x"}), "line 2", "PNG, JPEG or WebP", IMAGES)
case("a folder", "a.jsonl", lines(RED, {"image": ".", "label": "x"}), "line 2", "cannot be read", IMAGES)
case("empty", "a.jsonl", lines(RED, {"image": " ", "label": "x"}), "line 2", "PNG, JPEG or WebP", IMAGES)
case("a number", "a.jsonl", lines(RED, {"image": 7, "label": "x"}), "line 2", "PNG, JPEG or WebP", IMAGES)
case("no base64", "a.csv", 'image,label\n"data:image/png;base64,!",x\n', "line 2", "in base64", IMAGES)
case("cut off", "a.jsonl", lines({**RED, "image": RED["image"][:78]}), "line 1", "damaged", IMAGES)
case("no bytes", "a.parquet", parquet([{"image": {"bytes": b"GIF89a"}, "label": "x"}]), "row 1", "GIF89a", IMAGES)
case(
    "no text", "a.jsonl", lines({**RED, "text": ""}), "line 1", "expected a text that", IMAGES, columns={"text": "text"}
)
case("no label of an image", "a.jsonl", lines({**RED, "label": None}), "line 1", "the label is None", IMAGES)


def test_there_are_many_cases_and_each_has_its_own_name():
    names = [parameter.id for parameter in CASES]
    assert len(set(names)) == len(names) > 120


@pytest.mark.parametrize(("file", "content", "place", "why", "task", "options"), CASES)
def test_wrong_data_is_refused_with_file_line_and_what_was_expected(tmp_path, file, content, place, why, task, options):
    path = tmp_path / file
    contents = {path / name: part for name, part in content.items()} if isinstance(content, dict) else {path: content}
    for target, part in contents.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(part if isinstance(part, bytes) else part.encode())
    with pytest.raises(DataError) as caught:
        data.load(DataSection(train=str(path), **options), task, 0)
    message = str(caught.value)
    assert str(path) in message
    assert ADVICE.search(message)
    assert re.search(why, message)
    if place:
        assert re.search(rf"{place}\b.*{why}|{why}.*{place}\b", message)


@pytest.mark.parametrize("count", [10, 11, 5000])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet", "a.conll", "a.tsv", "brat"])
def test_at_most_ten_broken_rows_are_listed(tmp_path, name, count):
    if name == "brat":
        count = min(count, 30)
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("Anna")
        (tmp_path / name / "a.ann").write_text("".join(f"T{n}\tX 0 90\tAnna\n" for n in range(count)))
    else:
        rows = [{"text": "", "label": "x"} for _ in range(count)]
        content = {
            "a.csv": "text,label\n" + ",x\n" * count,
            "a.tsv": "text\tlabel\n" + "\tx\n" * count,
            "a.jsonl": lines(*rows),
            "a.json": json.dumps(rows),
            "a.parquet": parquet(rows),
            "a.conll": "Anna O\n" * 2 * count + "Anna\n" * count,
        }[name]
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        data.load(DataSection(train=str(tmp_path / name)), TEXT, 0)
    head, *listed = str(caught.value).splitlines()
    more = listed.pop() if count > 10 else None
    assert head.endswith(f"has {count} rows that cannot be read. Correct or remove:")
    assert len(listed) == 10
    assert all(re.match(r"    (line|row) (a\.ann:)?\d+: ", line) for line in listed)
    assert more == (f"    and {count - 10} more" if count > 10 else None)
    numbers = [int(re.search(r"\d+", line)[0]) for line in listed]
    assert numbers == list(range(numbers[0], numbers[0] + 10))


@pytest.mark.parametrize("task", [TEXT, TOKEN])
def test_splits_that_do_not_fit_are_refused_with_their_lines(tmp_path, task):
    text = task is TEXT
    train = [{"text": f"t {n}", "label": "xy"[n % 2]} for n in range(6)]
    if not text:
        train = [{"tokens": [f"t{n}", "u"], "tags": ["B-X", "B-Y"]} for n in range(6)]
    new = {"text": "new", "label": "z"} if text else {"tokens": ["new"], "tags": ["B-Z"]}
    for name, rows in {"train": train, "validation": [new, train[0]], "test": [train[1]]}.items():
        (tmp_path / f"{name}.jsonl").write_text(lines(*rows))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")}
    with pytest.raises(DataError) as caught:
        data.load(DataSection(**files), task, 0)
    message = str(caught.value)
    assert re.search(
        r"the label '[zZ]' occurs in the validation split but not in training: .*validation\.jsonl, line 1\.", message
    )
    assert "train line 1, validation line 2: " in message
    assert "train line 2, test line 1: " in message
    assert "Remove them from one split, or set data.allow_leakage: true" in message


def multi_task():
    task = tasks.load("multi-task")
    heads = {
        "mood": {"method": "text-classification", "columns": {"label": "label"}},
        "stars": {"method": "regression", "columns": {"score": "label"}},
    }
    return task.bind(task.Options(heads=heads))


def sources_of(tmp_path, moods, stars):
    """A file for each head: both have a column `label`, with words in one and numbers in the other."""
    (tmp_path / "moods.csv").write_text("text,label\n" + "".join(f"{row}\n" for row in moods))
    (tmp_path / "stars.jsonl").write_text(lines(*({"text": text, "label": label} for text, label in stars)))
    return {"mood": str(tmp_path / "moods.csv"), "stars": str(tmp_path / "stars.jsonl")}


def test_each_head_may_have_a_file_of_its_own(tmp_path):
    moods = [f"a{number},{'good' if number % 2 else 'bad'}" for number in range(30)]
    section = DataSection(train=sources_of(tmp_path, moods, [(f"b{number}", number) for number in range(30)]))
    dataset = data.load(section, multi_task(), 0)
    rows = [*dataset.train, *dataset.validation, *dataset.test]
    assert {(row.input.text, *row.target.items()) for row in rows} == {
        *((f"a{number}", ("mood", "good" if number % 2 else "bad")) for number in range(30)),
        *((f"b{number}", ("stars", float(number))) for number in range(30)),
    }
    before = data.fingerprint(section, 0)
    assert before == data.fingerprint(section, 0)
    sources_of(tmp_path, moods[1:], [("b", 1)])
    assert before != data.fingerprint(section, 0)


def test_a_wrong_row_of_one_of_several_files_is_named_by_file_and_line(tmp_path):
    section = DataSection(train=sources_of(tmp_path, ["a,good", "b,"], [("c", 1), ("d", "many")]))
    with pytest.raises(DataError, match=r"moods\.csv:3: the label is '', expected a word") as caught:
        data.load(section, multi_task(), 0)
    assert re.search(r"stars\.jsonl:2: the score is 'many', expected a number such as 3\.5", str(caught.value))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"train": "missing.jsonl"}, r"there is no file .*missing\.jsonl\. Paths in a recipe start from"),
        ({"train": "trian.csv"}, r"there is no file .*trian\.csv \(did you mean 'train\.csv'\?\)"),
        ({"train": "train.csv", "validation": "dev"}, r"data\.validation is 'dev', expected a file .* Name a file, or"),
        ({"train": "saved", "validation": "dev"}, r"saved has no split 'dev', expected one of: train, test\. Name one"),
    ],
)
def test_sources_that_are_not_there(tmp_path, options, why):
    (tmp_path / "train.csv").write_text(GOOD)
    rows = datasets.Dataset.from_list([A, B])
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    options = {**options, "train": str(tmp_path / options["train"])}
    with pytest.raises(DataError, match=why):
        data.load(DataSection(**options), TEXT, 0)


def test_a_format_with_a_data_set_of_the_hub_is_refused():
    with pytest.raises(
        DataError, match=r"data\.format is squad, expected a file .* 'owner/name' is neither\. Correct the"
    ):
        data.load(DataSection(train="owner/name", format="squad"), TEXT, 0)
