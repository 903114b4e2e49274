"""Each format is read as its makers define it, and what is written in it comes back."""

import gzip
import json
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit import data, recipe, tasks
from deploykit.data import sources
from deploykit.data.formats import squad
from deploykit.errors import DataError
from deploykit.recipe import DataSection

TEXT, TOKEN = tasks.load("text-classification"), tasks.load("token-classification")


def read(folder, files, name=None, split="train", format_name=None):
    """Writes files by name, and reads the named one; without a name, the folder."""
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        content = content if isinstance(content, str | bytes) else json.dumps(content)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return sources.read(str(folder / name if name else folder), split, format_name)


def read_file(folder, name, content, format_name=None):
    return read(folder, {name: content}, name, format_name=format_name)


def rows(table):
    assert table.broken_rows == ()
    return [(row.place, row.values) for row in table.rows]


def pick(table, *names):
    assert table.broken_rows == ()
    return [tuple(row.values[name] for name in names) for row in table.rows]


# JSON lists


@pytest.mark.parametrize(
    "content", ['[{"text": "a", "label": 1}, {"text": "b"}]', ' [\n{"text": "a", "label": 1},\n{"text": "b"}]\n']
)
def test_the_rows_of_a_json_list_are_counted(tmp_path, content):
    table = read_file(tmp_path, "a.json", content)
    assert (table.place_unit, table.columns) == ("row", ("text", "label"))
    assert rows(table) == [(1, {"text": "a", "label": 1}), (2, {"text": "b"})]


def test_a_compressed_json_list_and_one_whose_suffix_does_not_tell(tmp_path):
    content = json.dumps([{"text": "a"}])
    assert rows(read_file(tmp_path, "a.json.gz", gzip.compress(content.encode()))) == [(1, {"text": "a"})]
    assert rows(read_file(tmp_path, "a.jsonl", content, "json")) == [(1, {"text": "a"})]
    assert rows(read_file(tmp_path, "a.data", content, "json")) == [(1, {"text": "a"})]


def test_one_object_on_one_line_is_a_row(tmp_path):
    assert rows(read_file(tmp_path, "a.json", '{"text": "a"}\n')) == [(1, {"text": "a"})]


# SQuAD

CONTEXT = "Paris is the capital of France."
ANSWERED = {"id": "a", "question": "Which?", "answers": [{"text": "Paris", "answer_start": 0}]}
IMPOSSIBLE = {"id": "b", "question": "Why?", "answers": [], "is_impossible": True}


def nested(*questions):
    return {"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": CONTEXT, "qas": list(questions)}]}]}


@pytest.mark.parametrize("indent", [None, 1])
def test_nested_squad_has_a_row_for_each_question(tmp_path, indent):
    table = read_file(tmp_path, "a.json", json.dumps(nested(ANSWERED, IMPOSSIBLE), indent=indent))
    assert table.columns[:4] == ("id", "context", "question", "answers")
    assert pick(table, "id", "context", "question", "answers", "title") == [
        ("a", CONTEXT, "Which?", [{"text": "Paris", "start": 0}], "T"),
        ("b", CONTEXT, "Why?", [], "T"),
    ]
    assert [row.place for row in table.rows] == [1, 2]


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["Paris", "capital"], "answer_start": [0, 13]},
        [{"text": "Paris", "answer_start": 0}, {"text": "capital", "answer_start": 13}],
        [{"text": "Paris", "start": 0}, {"text": "capital", "start": 13}],
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_flat_squad_in_every_file_and_shape_of_answers(tmp_path, answers, name):
    row = {"id": "a", "context": CONTEXT, "question": "Which?", "answers": answers}
    pa.parquet.write_table(pa.Table.from_pylist([row]), whole := pa.BufferOutputStream())
    content = {"a.jsonl": row, "a.json": [row], "a.parquet": whole.getvalue().to_pybytes()}[name]
    expected = [{"text": "Paris", "start": 0}, {"text": "capital", "start": 13}]
    assert pick(read_file(tmp_path, name, content), "id", "answers") == [("a", expected)]


def test_flat_squad_below_data(tmp_path):
    content = {"version": 2, "data": [{**ANSWERED, "context": CONTEXT}]}
    assert pick(read_file(tmp_path, "a.json", content), "id", "answers") == [("a", [{"text": "Paris", "start": 0}])]


def test_other_rows_with_answers_stay_as_they_are(tmp_path):
    row = {"context": CONTEXT, "question": "Which?", "answers": ["A", "B"], "label": 1}
    assert rows(read_file(tmp_path, "a.jsonl", row)) == [(1, row)]


# CoNLL

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

-DOCSTART- -X- -X- O

Peter NNP B-NP B-PER
"""
SENTENCES = [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter"], ["B-PER"])]
CONLLU = """# sent_id = 1
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
4.1\tque\t_\t_\t_\t_\t_\t_\t_\t_
5\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\tSpaceAfter=No

1\tsí\tsí\tINTJ\t_\t_\t0\troot\t_\t_
"""


@pytest.mark.parametrize("name", ["a.conll", "a.iob", "a.BIO", "a.bio2", "a.conll.gz"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_conll_2003(tmp_path, name, ending):
    content = CONLL_2003.replace("\n", ending).encode()
    table = read_file(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    assert (table.place_unit, table.columns) == ("line", ("tokens", "tags"))
    assert pick(table, "tokens", "tags") == SENTENCES
    assert [row.place for row in table.rows] == [3, 8]


def test_a_text_file_is_conll_where_the_recipe_says_so(tmp_path):
    assert pick(read_file(tmp_path, "a.txt", CONLL_2003, "conll"), "tokens", "tags") == SENTENCES


@pytest.mark.parametrize("name", ["a.conllu", "a.conll"])
def test_conllu_has_words_and_their_parts_of_speech(tmp_path, name):
    table = read_file(tmp_path, name, CONLLU)
    assert pick(table, "tokens", "tags") == [
        (["vamos", "nos", "a", "el", "mar"], ["VERB", "PRON", "ADP", "DET", "NOUN"]),
        (["sí"], ["INTJ"]),
    ]
    assert [row.place for row in table.rows] == [4, 12]


def test_hashtags_are_tokens_and_comments_are_not(tmp_path):
    content = "# a comment of several words\n#goal\tB-TAG\nfor\tO\n\n# id 7\nwe\tO\n#\tO\n1\tO\n\n# the end\n"
    assert pick(read_file(tmp_path, "a.conll", content), "tokens") == [(["#goal", "for"],), (["we", "#", "1"],)]


def test_tokens_between_tabs_may_hold_spaces(tmp_path):
    assert pick(read_file(tmp_path, "a.conll", "New York\tB-LOC\n 5\tO\n"), "tokens") == [(["New York", " 5"],)]


def test_ten_columns_without_numbers_are_columns(tmp_path):
    line = "\t".join(["Anna", *"bcdefghi", "B-PER"])
    assert pick(read_file(tmp_path, "a.conll", line + "\n"), "tokens", "tags") == [(["Anna"], ["B-PER"])]


@pytest.mark.parametrize("content", ["", "\n\n", "-DOCSTART- O\n\n"])
def test_a_conll_file_without_tokens_has_no_rows(tmp_path, content):
    assert rows(read_file(tmp_path, "a.conll", content)) == []


WORD = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="#"), min_size=1, max_size=6)
WORD = WORD.filter(lambda word: not word.startswith("-DOCSTART-"))
TAGGED = st.lists(st.lists(st.tuples(WORD, st.sampled_from(["O", "B-X", "I-X"])), min_size=1, max_size=4), max_size=4)


def numbers(sentences):
    """Tells whether the tokens would be read as counted columns, which is refused."""
    return all([token for token, _ in part] == [str(n) for n in range(1, len(part) + 1)] for part in sentences)


@given(
    sentences=TAGGED.filter(lambda sentences: not numbers(sentences)),
    separator=st.sampled_from(["\t", " ", "  "]),
    ending=st.sampled_from(["\n", "\r\n"]),
    columns=st.integers(0, 2),
    documents=st.booleans(),
)
def test_what_is_written_as_conll_comes_back(tmp_path_factory, sentences, separator, ending, columns, documents):
    between = ["-"] * columns
    blocks = [[separator.join([token, *between, tag]) for token, tag in sentence] for sentence in sentences]
    title = ["-DOCSTART-", ""] if documents else []
    lines = [*title, *(line for block in blocks for line in [*block, ""])]
    table = read_file(tmp_path_factory.getbasetemp(), "a.conll", ending.join(lines))
    assert pick(table, "tokens", "tags") == [
        ([token for token, _ in sentence], [tag for _, tag in sentence]) for sentence in sentences
    ]
    assert [lines[row.place - 1] for row in table.rows] == [block[0] for block in blocks]


ANYTHING = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1, max_size=30)
ANYTHING = ANYTHING.filter(str.strip)


@st.composite
def questions(draw):
    context = draw(ANYTHING)
    starts = draw(st.lists(st.integers(0, len(context) - 1), max_size=3))
    answers = [
        {"text": context[start : draw(st.integers(start + 1, len(context)))], "start": start} for start in starts
    ]
    return {"context": context, "question": draw(ANYTHING), "answers": answers}


@given(drawn=st.lists(questions(), min_size=1, max_size=4), shape=st.sampled_from(["nested", "lists", "objects"]))
def test_what_is_written_as_squad_comes_back(tmp_path_factory, drawn, shape):
    flat = [{"id": str(number), **question} for number, question in enumerate(drawn)]
    content = []
    for row in flat:
        answers = [{"text": answer["text"], "answer_start": answer["start"]} for answer in row["answers"]]
        if shape == "lists":
            answers = {"text": [a["text"] for a in answers], "answer_start": [a["answer_start"] for a in answers]}
        content.append({**row, "answers": answers})
    if shape == "nested":
        paragraphs = [{"context": row.pop("context"), "qas": [row]} for row in content]
        content = {"data": [{"title": "T", "paragraphs": paragraphs}]}
    table = read_file(tmp_path_factory.getbasetemp(), "a.json", content, "squad")
    assert pick(table, "id", "context", "question", "answers") == [
        (row["id"], row["context"], row["question"], row["answers"]) for row in flat
    ]


# BRAT

NOTE = "Anna met Ben\nin Rome."
ANN = """T1\tPER 0 4\tAnna
T2\tPER 9 12\tBen
T3\tMeet 5 8\tmet
T4\tLOC 16 20\tRome
R1\tKnows Arg1:T1 Arg2:T2\t
E1\tMeet:T3 Who:T1 Place:T4 Part:E2
E2\tMeet:T2
A1\tTense E1 past
#1\tAnnotatorNotes T1\tthe first
*\tEquiv T1 T2
#2\tAnnotatorNotes T2\tthe second
"""


def test_brat_has_spans_and_relations(tmp_path):
    files = {"b.txt": NOTE, "b.ann": ANN, "a.txt": "nothing here", "a.ann": "", "annotation.conf": "[entities]"}
    table = read(tmp_path, files)
    assert table.columns == ("id", "text", "spans", "relations")
    (first, nothing), (second, values) = rows(table)
    assert (first, second) == ("a.txt:1", "b.txt:1")
    assert nothing == {"id": "a", "text": "nothing here", "spans": [], "relations": []}
    assert values["spans"] == [
        {"start": 0, "end": 4, "label": "PER", "id": "T1"},
        {"start": 9, "end": 12, "label": "PER", "id": "T2"},
        {"start": 5, "end": 8, "label": "Meet", "id": "T3"},
        {"start": 16, "end": 20, "label": "LOC", "id": "T4"},
    ]
    assert [tuple(relation.values()) for relation in values["relations"]] == [
        ("T1", "T2", "Knows"),
        ("T3", "T1", "Who"),
        ("T3", "T4", "Place"),
        ("T3", "T2", "Part"),
    ]
    assert table.warnings == (
        f"{tmp_path} has annotations that are not read: notes (#), 2; equivalences (*), 1; attributes (A), 1.",
    )


def test_the_text_of_a_brat_entity_has_spaces_for_line_breaks(tmp_path):
    table = read(tmp_path, {"a.txt": NOTE, "a.ann": "T1\tX 9 15\tBen in\n"})
    assert pick(table, "spans") == [([{"start": 9, "end": 15, "label": "X", "id": "T1"}],)]


@st.composite
def documents(draw):
    text = draw(ANYTHING)
    starts = draw(st.lists(st.integers(0, len(text) - 1), max_size=3))
    spans = [
        {"start": start, "end": draw(st.integers(start + 1, len(text))), "label": "L", "id": f"T{number}"}
        for number, start in enumerate(starts, start=1)
    ]
    ends = st.sampled_from([span["id"] for span in spans] or [""])
    pairs = draw(st.lists(st.tuples(ends, ends), max_size=2)) if spans else []
    return {"text": text, "spans": spans, "relations": [{"head": a, "tail": b, "label": "R"} for a, b in pairs]}


def written_in_brat(document):
    text = document["text"]
    entities = [
        f"{span['id']}\t{span['label']} {span['start']} {span['end']}\t"
        + text[span["start"] : span["end"]].replace("\r", " ").replace("\n", " ")
        for span in document["spans"]
    ]
    relations = [
        f"R{number}\t{relation['label']} Arg1:{relation['head']} Arg2:{relation['tail']}"
        for number, relation in enumerate(document["relations"])
    ]
    return "\n".join([*entities, *relations])


@given(drawn=documents())
def test_what_is_written_in_brat_comes_back(tmp_path_factory, drawn):
    folder = tmp_path_factory.getbasetemp() / "brat"
    table = read(folder, {"d.txt": drawn["text"], "d.ann": written_in_brat(drawn)})
    assert rows(table) == [("d.txt:1", {"id": "d", **drawn})]


# annotation tools

ANNA = "Anna left"


@pytest.mark.parametrize("column", ["label", "labels"])
def test_doccano_spans(tmp_path, column):
    lines = [{"id": 1, "text": ANNA, column: [[0, 4, "PER"]], "Comments": []}, {"id": 2, "text": "no", column: []}]
    table = read_file(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    span = {"start": 0, "end": 4, "label": "PER", "id": "0"}
    assert pick(table, "text", "spans", "relations") == [(ANNA, [span], []), ("no", [], [])]


def test_doccano_entities_and_relations(tmp_path):
    entities = [
        {"id": 7, "label": "PER", "start_offset": 0, "end_offset": 4},
        {"id": 9, "label": "ACT", "start_offset": 5, "end_offset": 9},
    ]
    row = {
        "id": 1,
        "text": ANNA,
        "entities": entities,
        "relations": [{"id": 1, "from_id": 9, "to_id": 7, "type": "by"}],
    }
    assert pick(read_file(tmp_path, "a.jsonl", row), "spans", "relations") == [
        (
            [
                {"start": 0, "end": 4, "label": "PER", "id": "7"},
                {"start": 5, "end": 9, "label": "ACT", "id": "9"},
            ],
            [{"head": "9", "tail": "7", "label": "by"}],
        )
    ]


def test_doccano_labels_of_texts(tmp_path):
    lines = [{"text": "a", "label": ["x"]}, {"text": "b", "label": ["x", "y"]}, {"text": "c", "label": []}]
    table = read_file(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert pick(table, "label", "labels") == [("x", ["x"]), (["x", "y"], ["x", "y"]), ([], [])]


def test_tags_under_other_names_are_not_taken_for_labels_of_texts(tmp_path):
    row = {"text": "Anna", "words_of_it": ["Anna"], "labels": ["B-PER"]}
    assert rows(read_file(tmp_path, "a.jsonl", row)) == [(1, row)]


def region(start, end, label, identifier="r1", text=ANNA, **more):
    value = {"start": start, "end": end, "text": text[start:end], "labels": [label]}
    return {"id": identifier, "type": "labels", "from_name": "entity", "to_name": "text", "value": value, **more}


def choice(*choices, control="topic"):
    return {"type": "choices", "from_name": control, "to_name": "text", "value": {"choices": list(choices)}}


def task(*results, data=None, cancelled=False):
    return {
        "id": 1,
        "data": data or {"text": ANNA},
        "annotations": [{"was_cancelled": cancelled, "result": list(results)}],
    }


def test_label_studio_spans_and_relations(tmp_path):
    relation = {"type": "relation", "from_id": "r1", "to_id": "r2", "direction": "right", "labels": ["does"]}
    back = {**relation, "direction": "left", "labels": []}
    content = [task(region(0, 4, "PER"), region(5, 9, "ACT", "r2"), relation, back), task()]
    table = read_file(tmp_path, "a.json", content)
    assert pick(table, "text", "spans", "relations") == [
        (
            ANNA,
            [{"start": 0, "end": 4, "label": "PER", "id": "r1"}, {"start": 5, "end": 9, "label": "ACT", "id": "r2"}],
            [{"head": "r1", "tail": "r2", "label": "does"}, {"head": "r2", "tail": "r1", "label": None}],
        ),
        (ANNA, [], []),
    ]
    assert table.place_unit == "row"


@pytest.mark.parametrize("data", [{"body": ANNA, "stars": 3}, {"text": ANNA, "title": "A"}])
def test_label_studio_choices_and_scores(tmp_path, data):
    rating = {"type": "rating", "from_name": "stars", "value": {"rating": 4}}
    content = [task(choice("bills"), rating, data=data), task(choice("a", "b"), data=data)]
    assert pick(read_file(tmp_path, "a.json", content), "text", "label", "labels", "score", "topic") == [
        (ANNA, "bills", ["bills"], 4, "bills"),
        (ANNA, ["a", "b"], ["a", "b"], None, ["a", "b"]),
    ]


def test_two_questions_of_label_studio_are_columns_by_their_names(tmp_path):
    content = [
        task(choice("bills"), choice("sad", control="mood")),
        task(choice("trips"), choice("glad", control="mood")),
    ]
    section = DataSection(train=str(tmp_path / "a.json"))
    table = read_file(tmp_path, "a.json", content)
    assert pick(table, "topic", "mood") == [("bills", "sad"), ("trips", "glad")]
    with pytest.raises(
        DataError, match=r"no column 'label'.* It has: .*topic, mood.* Name the right one with data\.label"
    ):
        data.load(section, TEXT, 0)


def test_the_first_annotation_that_was_not_cancelled_counts(tmp_path):
    several = task(choice("no"), cancelled=True)
    several["annotations"] += task(choice("yes"))["annotations"] + task(choice("maybe"))["annotations"]
    agreeing = task(region(0, 4, "PER", "r1"))
    agreeing["annotations"] += task(region(0, 4, "PER", "other id"))["annotations"]
    relation = {"type": "relation", "to_id": "r2", "labels": ["does"]}
    related = [
        task(region(0, 4, "PER", name), region(5, 9, "ACT", "r2"), {**relation, "from_id": start})["annotations"]
        for name, start in (("r1", "r1"), ("other id", "other id"), ("r1", "r2"))
    ]
    same, different = task(), task()
    same["annotations"], different["annotations"] = [*related[0], *related[1]], [*related[0], *related[2]]
    assert read_file(tmp_path, "b.json", [same]).warnings == ()
    assert "in 1 of 1 tasks" in read_file(tmp_path, "b.json", [different]).warnings[0]
    table = read_file(tmp_path, "a.json", [several, agreeing, task({"type": "brushlabels", "value": {}})])
    assert [row.values["label"] for row in table.rows] == ["yes", None, None]
    assert table.warnings == (
        f"{tmp_path}/a.json has several annotations that disagree in 1 of 3 tasks; the first of each task that was not"
        " cancelled is read.",
        f"{tmp_path}/a.json has results of types that are not read: brushlabels (1).",
    )


def test_label_studio_json_min(tmp_path):
    common = {"annotator": 1, "annotation_id": 5, "lead_time": 2.5}
    part = {"start": 0, "end": 4, "text": "Anna", "labels": ["PER"]}
    spans = [{"id": 1, "text": ANNA, "ner": [part], **common}, {"id": 2, "text": "no one", **common}]
    expected = [{"start": 0, "end": 4, "label": "PER", "id": "0"}]
    assert pick(read_file(tmp_path, "a.json", spans), "text", "spans") == [(ANNA, expected), ("no one", [])]
    choices = [{"id": 1, "text": ANNA, "mood": "sad", "topics": {"choices": ["a", "b"]}, **common}]
    assert pick(read_file(tmp_path, "b.json", choices), "mood", "topics") == [("sad", ["a", "b"])]


def test_a_file_of_two_shapes_is_refused_unless_the_recipe_names_one(tmp_path):
    row = {"id": "1", "text": ANNA, "label": [[0, 4, "PER"]]}
    row |= {"context": CONTEXT, "question": "Which?", "answers": {"text": ["Paris"], "answer_start": [0]}}
    row["label"] = [[0, 4, "PER"]]
    with pytest.raises(DataError, match=r"a\.jsonl could be any of: squad, doccano\. Name .* data\.format: squad\."):
        read_file(tmp_path, "a.jsonl", row)
    assert "spans" not in read_file(tmp_path, "a.jsonl", row, "squad").columns
    assert "spans" in read_file(tmp_path, "a.jsonl", row, "doccano").columns
    assert rows(read_file(tmp_path, "a.jsonl", row, "jsonl")) == [(1, row)]


# directories


def test_a_directory_of_parquet_files_is_one_table(tmp_path):
    for name, texts in {"train-00001.parquet": ["c"], "train-00000.parquet": ["a", "b"]}.items():
        pa.parquet.write_table(pa.table({"text": texts}), tmp_path / name)
    assert [(row.place, row.values["text"]) for row in sources.read(str(tmp_path)).rows] == [
        ("train-00000.parquet:1", "a"),
        ("train-00000.parquet:2", "b"),
        ("train-00001.parquet:1", "c"),
    ]


LABELS = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})


def saved(texts, labels):
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=LABELS)


def test_a_saved_data_set_gives_its_rows_with_names_of_classes(tmp_path):
    saved(["a", "b"], [1, 0]).save_to_disk(tmp_path / "one")
    assert rows(sources.read(str(tmp_path / "one"))) == [
        (1, {"text": "a", "label": "good"}),
        (2, {"text": "b", "label": "bad"}),
    ]


def test_saved_splits_are_named_as_those_of_the_hub(tmp_path):
    splits = {
        name: saved([f"{name} {number}" for number in range(8)], [0, 1] * 4) for name in ("train", "validation", "exam")
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "all")
    section = DataSection(train=str(tmp_path / "all"), validation="validation", test="exam")
    dataset = data.load(section, TEXT, 0)
    assert dataset.summary["rows"] == {"train": 8, "validation": 8, "test": 8}
    assert dataset.test[0].input.text == "exam 0"
    by_path = DataSection(train=str(tmp_path / "all"), validation=str(tmp_path / "all"), test="exam")
    assert data.load(by_path, TEXT, 0) == dataset
    with pytest.raises(
        DataError, match=r"all has no split 'dev', expected one of: train, validation, exam\. Name .*/all/train$"
    ):
        data.load(section.model_copy(update={"validation": "dev"}), TEXT, 0)


def test_a_directory_that_could_be_two_things_is_refused(tmp_path):
    pa.parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"could be any of: parquet, brat\. Name .* data\.format: parquet\."):
        read(tmp_path, {"a.txt": NOTE, "a.ann": ANN})
    assert [row.place for row in sources.read(str(tmp_path), format_name="brat").rows] == ["a.txt:1"]
    assert [row.place for row in sources.read(str(tmp_path), format_name="parquet").rows] == ["a.parquet:1"]


def test_the_fingerprint_of_a_directory_is_that_of_its_files(tmp_path):
    for name in ("one", "two"):
        read(tmp_path / name, {"a.txt": NOTE, "a.ann": ANN})
    sections = [DataSection(train=str(tmp_path / name), spans="spans") for name in ("one", "two")]
    before, same = (data.fingerprint(section, 0) for section in sections)
    assert before == same
    (tmp_path / "one" / ".DS_Store").write_text("x")
    assert data.fingerprint(sections[0], 0) == before
    (tmp_path / "one" / "a.ann").write_text(ANN + "\n")
    (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "b.txt")
    assert len({before, *(data.fingerprint(section, 0) for section in sections)}) == 3


# the table of the documentation

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-data.md"
EXAMPLES = re.findall(
    r"^\| `([\w-]+)`.*\| `([\[{].*[\]}])` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.mark.parametrize(("format_name", "example", "columns"), EXAMPLES)
def test_the_examples_of_the_documentation_are_recognized(tmp_path, format_name, example, columns):
    table = read_file(tmp_path, "a.json" if example.startswith("[") else "a.jsonl", example)
    assert rows(table) == rows(read_file(tmp_path, "a.data", example, format_name))
    assert set(re.findall("`([a-z]+)`", columns.partition(", and")[0])) - {"data"} <= set(table.columns)


def test_the_documentation_has_examples():
    assert {name for name, _, _ in EXAMPLES} == {"jsonl", "json", "doccano", "label-studio", "squad"}


# whatever a file holds, it is read or refused

KEYS = (
    *(
        "text",
        "label",
        "labels",
        "entities",
        "relations",
        "id",
        "start_offset",
        "end_offset",
        "from_id",
        "to_id",
        "type",
    ),
    *("data", "annotations", "result", "value", "start", "end", "choices", "rating", "from_name", "was_cancelled"),
    *("annotation_id", "lead_time", "paragraphs", "qas", "context", "question", "answers", "answer_start"),
)
LEAVES = (
    st.none() | st.booleans() | st.sampled_from([0, 1, -1, 0.5, "", "a", "labels", "choices", "relation", "rating"])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=25,
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=8)
TASKS = st.fixed_dictionaries({"data": JSON, "annotations": st.lists(st.fixed_dictionaries({"result": JSON}) | JSON)})
RESULTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["labels", "choices", "relation", "rating"]), "value": JSON, "from_name": LEAVES | JSON},
    optional={"id": JSON, "from_id": JSON, "to_id": JSON, "labels": JSON, "direction": JSON},
)
STUDIO = st.fixed_dictionaries(
    {
        "data": st.just({"text": "a b"}),
        "annotations": st.lists(st.fixed_dictionaries({"result": st.lists(RESULTS)}), min_size=1, max_size=2),
    }
)


@given(
    content=st.lists(OBJECTS | TASKS | STUDIO, min_size=1, max_size=3),
    format_name=st.sampled_from([None, "squad", "doccano", "label-studio"]),
    name=st.sampled_from(["a.json", "a.jsonl"]),
)
@settings(max_examples=400)
def test_any_json_is_read_or_its_rows_are_complained_about(tmp_path_factory, content, format_name, name):
    text = json.dumps(content) if name == "a.json" else "\n".join(map(json.dumps, content))
    reason = None
    try:
        table = read_file(tmp_path_factory.getbasetemp(), name, text, format_name)
    except DataError as error:
        reason = str(error)
    assert "could be any of" in reason if reason else len(table.rows) + len(table.broken_rows) == len(content)


@given(content=st.fixed_dictionaries({"data": st.lists(OBJECTS, max_size=3)}))
def test_any_object_with_data_is_read_or_complained_about(tmp_path_factory, content):
    table = read_file(tmp_path_factory.getbasetemp(), "a.json", content)
    assert not squad.is_nested(content) or set(squad.COLUMNS) <= set(table.columns)


@given(text=st.text("\t \n\r#_O-B1.x", max_size=40), name=st.sampled_from(["a.conll", "a.conllu"]))
def test_any_columns_are_read_or_complained_about(tmp_path_factory, text, name):
    reason = None
    try:
        table = read_file(tmp_path_factory.getbasetemp(), name, text)
    except DataError as error:
        reason = str(error)
    if reason:
        assert re.search(r", line \d+: ", reason)
        return
    assert all(len(row.values["tokens"]) == len(row.values["tags"]) > 0 for row in table.rows)
    assert all(1 <= complaint.place <= len(re.split(r"\r\n|\r|\n", text)) for complaint in table.broken_rows)


PIECES = st.sampled_from(
    ["T1", "T2", "R1", "E1", "A1", "#1", "*", "\t", "\t", " ", " ", "PER", "0", "4", ";", "Arg1:T1", "\n"]
)


@given(pieces=st.lists(PIECES, max_size=25))
def test_any_annotations_of_brat_are_read_or_complained_about(tmp_path_factory, pieces):
    table = read(tmp_path_factory.getbasetemp() / "any", {"a.txt": "Anna left", "a.ann": "".join(pieces)})
    assert [row.place for row in table.rows] == ([] if table.broken_rows else ["a.txt:1"])
    assert all(re.fullmatch(r"a\.ann:\d+", place.place) for place in table.broken_rows)


# whole recipes


def test_a_recipe_reads_a_directory_of_brat(tmp_path):
    names = ["Anna", "Ben", "Carla", "David", "Emma", "Fritz", "Gina", "Hans", "Ines", "Jan", "Kim", "Lea"]
    files = {}
    for index, name in enumerate(names):
        place = index % 2
        text = f"{name} lives in Rome {index}" if place else f"Today {name} left {index}"
        start = text.index(name)
        ann = [f"T1\tPER {start} {start + len(name)}\t{name}"]
        if place:
            ann.append(f"T2\tLOC {text.index('Rome')} {text.index('Rome') + 4}\tRome")
        files |= {f"notes/{name}.txt": text, f"notes/{name}.ann": "\n".join(ann)}
    content = {"name": "x", "task": "token-classification", "model": "m", "data": {"train": "notes", "spans": "spans"}}
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    section = recipe.parse(content, tmp_path).data
    dataset = data.load(section, TOKEN, 0)
    assert sum(dataset.summary["rows"].values()) == 12
    assert dataset.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    example = dataset.train[0]
    assert {example.input.text[span.start : span.end] for span in example.target} <= {*names, "Rome"}


def test_a_recipe_names_the_format_of_a_text_file(tmp_path):
    sentences = "".join(f"Anna{n} B-PER\nsaw O\nRome{n} B-LOC\n\n" for n in range(20))
    (tmp_path / "ner.txt").write_text(sentences)
    content = {
        "name": "x",
        "task": "token-classification",
        "model": "m",
        "data": {"train": "ner.txt", "format": "conll"},
    }
    dataset = data.load(recipe.parse(content, tmp_path).data, TOKEN, 0)
    assert dataset.summary["labels"]["train"] == {"LOC": 16, "PER": 16}


def load(folder, task, content, name, **options):
    (folder / name).write_text(content)
    section = DataSection(train=str(folder / name), **options)
    return data.load(section, tasks.load(task), 0)


def test_question_answering_reads_squad(tmp_path):
    paragraphs = [
        {"context": f"Paris {n} is a town.", "qas": [{**ANSWERED, "id": str(n)}, {**IMPOSSIBLE, "id": f"no {n}"}]}
        for n in range(10)
    ]
    for paragraph in paragraphs:
        for question in paragraph["qas"]:
            question["question"] += paragraph["context"]
    dataset = load(tmp_path, "question-answering", json.dumps({"data": [{"paragraphs": paragraphs}]}), "a.json")
    assert dataset.summary["rows"] == {"train": 16, "validation": 2, "test": 2}
    targets = {example.target for example in (*dataset.train, *dataset.validation, *dataset.test)}
    assert targets == {(("Paris", 0, 0),), ()}


def test_several_contexts_are_left_to_the_task(tmp_path):
    row = {"context": ["no", CONTEXT], "question": "Which?", "answers": [{"text": "Paris", "start": 0, "context": 1}]}
    assert rows(read_file(tmp_path, "a.jsonl", row)) == [(1, row)]


def test_several_labels_are_read_of_doccano_and_numbers_of_label_studio(tmp_path):
    lines = [json.dumps({"text": f"text {n}", "label": [["x"], ["x", "y"], []][n % 3]}) for n in range(30)]
    several = load(tmp_path, "multi-label-classification", "\n".join(lines), "a.jsonl")
    assert {example.target for example in several.train} == {("x",), ("x", "y"), ()}
    content = [task({"type": "number", "value": {"number": n / 2}}, data={"text": f"text {n}"}) for n in range(30)]
    numbers = load(tmp_path, "regression", json.dumps(content), "b.json")
    assert {example.target for example in numbers.train} <= {n / 2 for n in range(30)}


def test_lists_in_a_column_labels_are_left_to_the_task(tmp_path):
    content = [{"text": "a", "labels": ["x"]}, {"text": "b", "labels": "x,y"}, {"text": "c", "labels": [1]}]
    assert [row for _, row in rows(read_file(tmp_path, "a.json", content))] == content


def test_warnings_about_a_file_are_logged_once_and_kept(tmp_path, caplog):
    content = [task(choice("ab"[n % 2]), {"type": "brushlabels"}, data={"text": f"text {n}"}) for n in range(20)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = data.load(DataSection(train=str(tmp_path / "a.json")), TEXT, 0)
    warning = f"{tmp_path}/a.json has results of types that are not read: brushlabels (20)."
    assert dataset.summary["warnings"] == [warning]
    assert caplog.messages == [warning]
