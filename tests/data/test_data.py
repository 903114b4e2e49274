import json
import logging

import pyarrow as pa
import pyarrow.parquet
import pytest

from deploykit import data, tasks
from deploykit.data import sources
from deploykit.errors import DataError
from deploykit.recipe import DataSection
from deploykit.tokenizer import Tokenizer

TEXT = tasks.load("text-classification")
TOKEN = tasks.load("token-classification")


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def reviews(*labels, prefix="text"):
    return [{"text": f"{prefix} {number}", "label": label} for number, label in enumerate(labels)]


def three(folder):
    return {name: str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}


def test_problems_of_all_files_come_together(tmp_path):
    train = jsonl(tmp_path / "train.jsonl", [{"text": "", "label": "a"}, *reviews("a", "b")])
    test = jsonl(tmp_path / "test.jsonl", [{"sentence": "a", "label": "b"}])
    section = DataSection(train=train, validation=str(tmp_path / "dev.jsonl"), test=test)
    with pytest.raises(DataError) as caught:
        data.load(section, TEXT, 0)
    head, *found = str(caught.value).split("\n  - ")
    assert head == "the data has 3 problems:"
    assert found[0].startswith(f"{train} has a row that cannot be read. Correct or remove:\n    line 1: 'text' is ''")
    assert found[1].startswith(f"there is no file {tmp_path}/dev.jsonl")
    assert found[2].startswith(f"{test} has no column 'text'")


def test_a_split_name_beside_a_training_file_is_refused(tmp_path):
    section = DataSection(train=jsonl(tmp_path / "train.jsonl", reviews("a", "b")), validation="dev")
    with pytest.raises(
        DataError, match=r"data\.validation is 'dev', expected a file \(csv, .*\) since data\.train is one"
    ):
        data.load(section, TEXT, 0)


def test_an_empty_training_file_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"3 problems:\n  - the train split is empty .*train\.csv holds no rows"):
        data.load(DataSection(train=str(tmp_path / "train.csv")), TEXT, 0)


def test_too_few_rows_for_a_split_are_refused(tmp_path):
    section = DataSection(train=jsonl(tmp_path / "train.jsonl", reviews("a", "b", "a")), test_share=0.4)
    with pytest.raises(DataError, match=r"^the validation split is empty \(.*train\.jsonl holds no rows for it\)"):
        data.load(section, TEXT, 0)


def test_an_unseen_label_and_leakage_are_refused_with_lines(tmp_path):
    folder = three(tmp_path)
    jsonl(tmp_path / "train.jsonl", reviews("a", "b"))
    jsonl(tmp_path / "validation.jsonl", reviews("a", "c", prefix="other"))
    jsonl(tmp_path / "test.jsonl", reviews("a", "b", prefix="text"))
    with pytest.raises(DataError, match=r"the label 'c' .*validation\.jsonl, line 2\. Training has: a, b") as caught:
        data.load(DataSection(**folder), TEXT, 0)
    assert "train line 2, test line 2: 'text 1'" in str(caught.value)


def test_leakage_is_counted_where_it_is_allowed(tmp_path, caplog):
    for name in ("train", "validation", "test"):
        jsonl(tmp_path / f"{name}.jsonl", reviews("a", "b"))
    with caplog.at_level(logging.WARNING, logger="deploykit.data"):
        found = data.load(DataSection(**three(tmp_path), allow_leakage=True), TEXT, 0)
    assert found.summary["leakage"] == {"train/validation": 2, "train/test": 2, "validation/test": 2}
    assert "2 rows of the test split occur in the train split, too; scores flatter the model." in caplog.messages


def test_given_splits_are_taken_as_they_are(review_files, sentences):
    found = data.load(DataSection(**three(review_files)), TEXT, 0)
    rows = [*found.train, *found.validation, *found.test]
    assert [(row.input.text, row.target) for row in rows] == sentences
    assert found.labels == ("negative", "positive")
    assert found.summary["rows"] == {"train": 280, "validation": 60, "test": 60}
    assert found.summary["warnings"] == []


def test_tagged_files(tagged_files, tagged_sentences):
    found = data.load(DataSection(**three(tagged_files)), TOKEN, 0)
    assert found.labels == ("O", "B-NAME", "I-NAME")
    assert [row.input.text.split() for row in found.validation] == [tokens for tokens, _ in tagged_sentences[:15]]
    spans = sum(tag == "B-NAME" for _, tags in tagged_sentences[30:] for tag in tags)
    assert found.summary["labels"]["train"] == {"NAME": spans}


def test_the_scheme_of_the_tags_is_that_of_all_splits_together(tmp_path):
    """Neighbours of one label are one entity, since other splits have an `O`; alone, this one could not tell."""
    folder = three(tmp_path)
    jsonl(tmp_path / "train.jsonl", [{"tokens": ["Anna", "Lee", "runs"], "tags": ["PER", "PER", "O"]}])
    jsonl(tmp_path / "validation.jsonl", [{"tokens": ["Paul", "Smith"], "tags": ["PER", "PER"]}])
    jsonl(tmp_path / "test.jsonl", [{"tokens": ["we", "saw", "Rome"], "tags": ["O", "O", "PER"]}])
    found = data.load(DataSection(**folder), TOKEN, 0)
    assert found.labels == ("O", "B-PER", "I-PER")
    assert [(span.start, span.end) for span in found.validation[0].target] == [(0, 10)]


def test_a_tag_of_another_scheme_is_refused_with_its_line(tmp_path):
    rows = [{"tokens": ["Anna", "runs"], "tags": ["B-PER", "O"]}, {"tokens": ["Rome"], "tags": ["LOC"]}]
    with pytest.raises(DataError, match=r"line 2: the tag 'LOC' has no prefix"):
        data.load(DataSection(train=jsonl(tmp_path / "train.jsonl", rows)), TOKEN, 0)


def test_the_same_rows_in_every_format_are_the_same_data(tmp_path, sentences):
    rows = [{"text": text, "label": int(label == "positive")} for text, label in sentences]
    jsonl(tmp_path / "a.jsonl", rows)
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name, mark, quote in (("a.csv", ",", '"'), ("a.tsv", "\t", ""), ("semicolons.csv", ";", '"')):
        lines = [f"{quote}{row['text']}{quote}{mark}{row['label']}\n" for row in rows]
        (tmp_path / name).write_text(f"text{mark}label\n" + "".join(lines), encoding="utf-8")
    found = [
        data.load(DataSection(train=str(tmp_path / name)), TEXT, 5)
        for name in ("a.jsonl", "a.parquet", "a.csv", "a.tsv", "semicolons.csv")
    ]
    assert found[0].labels == ("0", "1")
    assert all(
        (one.train, one.validation, one.test) == (found[0].train, found[0].validation, found[0].test) for one in found
    )


def test_splits_that_are_made_are_stratified_seeded_and_without_leakage(tmp_path, sentences):
    rows = [{"text": text, "label": label} for text, label in sentences] * 2
    section = DataSection(train=jsonl(tmp_path / "train.jsonl", rows), validation_share=0.2, test_share=0.1)
    first, again, other = (data.load(section, TEXT, seed) for seed in (1, 1, 2))
    assert first.summary["rows"] == {"train": 560, "validation": 160, "test": 80}
    assert first.summary["labels"]["test"] == {"negative": 40, "positive": 40}
    assert set(first.summary["leakage"].values()) == {0}
    assert first.summary["duplicates"] == {"train": 280, "validation": 80, "test": 40}
    assert first == again
    assert first.test != other.test


def test_a_test_split_is_cut_beside_a_given_validation_split(tmp_path, sentences):
    rows = [{"text": text, "label": label} for text, label in sentences]
    section = DataSection(
        train=jsonl(tmp_path / "train.jsonl", rows[:300]), validation=jsonl(tmp_path / "dev.jsonl", rows[300:])
    )
    found = data.load(section, TEXT, 0)
    assert found.summary["rows"] == {"train": 270, "validation": 100, "test": 30}
    assert found.summary["sources"]["test"] == "train.jsonl, share 0.1"


def test_a_data_set_of_the_hub_gives_its_own_splits(monkeypatch):
    asked = []

    def read(source, split, format_name):
        asked.append((source, split))
        rows = tuple(sources.Row(line, row) for line, row in enumerate(reviews("a", "b", prefix=split), start=1))
        return sources.Table(f"{source}[{split}]", "row", ("text", "label"), rows)

    monkeypatch.setattr(sources, "read", read)
    found = data.load(DataSection(train="owner/reviews", validation="dev", test="test"), TEXT, 0)
    assert asked == [("owner/reviews", "train"), ("owner/reviews", "dev"), ("owner/reviews", "test")]
    assert [row.input.text for row in found.validation] == ["dev 0", "dev 1"]
    assert found.summary["sources"]["test"] == "owner/reviews[test]"


def test_lengths_of_every_split(review_files, tokenizer_folder):
    found = data.load(DataSection(**three(review_files)), TEXT, 0)
    lengths = data.describe_lengths(found, Tokenizer.load(tokenizer_folder, max_tokens=10))
    assert {name: sum(part["histogram"]["counts"]) for name, part in lengths.items()} == found.summary["rows"]
    assert all(0 < part["truncated"] < 280 and part["max"] > 10 for part in lengths.values())


def test_the_fingerprint_of_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*train\.csv"):
        data.fingerprint(DataSection(train=str(tmp_path / "train.csv")), 0)


def test_the_fingerprint_does_not_depend_on_where_the_files_lie(tmp_path):
    prints = set()
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        prints.add(data.fingerprint(DataSection(train=jsonl(tmp_path / place / "train.jsonl", reviews("a", "b"))), 0))
    assert len(prints) == 1


def test_the_fingerprint_changes_with_a_byte_a_field_the_seed_the_format_and_the_revision(tmp_path):
    content = json.dumps({"text": "a", "label": "b"})
    paths = {name: tmp_path / name for name in ("a.jsonl", "b.jsonl", "a.csv")}
    for name, path in paths.items():
        path.write_text(content + "\n" * (name == "b.jsonl"))
    sections = [
        *(DataSection(train=str(path)) for path in paths.values()),
        DataSection(train=str(paths["a.jsonl"]), test=str(paths["b.jsonl"])),
        DataSection(train=str(paths["a.jsonl"]), label="y"),
        DataSection(train="owner/reviews"),
        DataSection(train="owner/reviews@1"),
        DataSection(train="owner/reviews", test="dev"),
    ]
    prints = [data.fingerprint(section, 0) for section in sections] + [data.fingerprint(sections[0], 1)]
    assert len(set(prints)) == len(prints) == 9
    assert all(len(one) == 64 for one in prints)
