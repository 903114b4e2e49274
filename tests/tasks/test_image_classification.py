"""The task on images, alone and with texts."""

import base64
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from pictures import PREPROCESSING, data_url, painted, write_rows
from pydantic import ValidationError

from deploykit import data, tasks
from deploykit.data.formats import arrow
from deploykit.errors import InputError
from deploykit.images import ImageTokenizer
from deploykit.images.preprocessing import Preprocessing
from deploykit.recipe import DataSection
from deploykit.tasks import Spec
from deploykit.tasks.image_classification import Input, Options
from deploykit.tokenizer import Tokenizer

TASK = tasks.load("image-classification")
RED = painted("red")


def load(path, **columns):
    return data.load(DataSection(train=str(path), columns=columns), TASK, 0)


def test_an_input_is_base64_a_data_url_bytes_or_a_path_and_a_client_cannot_name_a_path(tmp_path):
    text = base64.b64encode(RED).decode()
    for value in (text, data_url(RED), RED):
        assert Input(image=value).image == RED
        assert Input.model_validate(value).image == RED
    assert Input.model_validate_json(json.dumps({"image": text, "text": "a"})).parts == (RED, "a")
    (tmp_path / "red.png").write_bytes(RED)
    item = Input(image=tmp_path / "red.png")
    assert json.loads(item.model_dump_json()) == {"image": text, "text": None}
    with pytest.raises(ValidationError, match="base64"):
        Input.model_validate_json(json.dumps({"image": str(tmp_path / "red.png")}))


def test_copies_are_the_same_file_with_the_same_text(tmp_path):
    (tmp_path / "red.png").write_bytes(RED)
    path, others = Input(image=tmp_path / "red.png", text="a  b"), (Input(image=RED, text="a b"), Input(image=RED))
    assert [path.identity == other.identity for other in others] == [True, False]
    assert (path.title, others[1].title[:6]) == ("red.png a  b", "image ")
    assert path.without_files().model_dump() == {"text": "a  b"}


def test_paths_are_relative_to_the_file_of_the_rows_and_images_stay_files(tmp_path, monkeypatch):
    write_rows(tmp_path / "rows", {"train": 20})
    monkeypatch.chdir(tmp_path)
    dataset = load(tmp_path / "rows" / "train.jsonl")
    assert all(isinstance(example.input.image, Path) for example in dataset.train)
    assert dataset.labels == ("blue", "red")
    assert dataset.summary["characters"]["train"]["max"] == 0


def test_bytes_and_paths_of_parquet_and_of_datasets_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "0.png").write_bytes(painted("red", 90))
    rows = [{"image": {"bytes": painted("red", seed), "path": None}, "label": "red"} for seed in range(10)]
    rows += [{"image": {"bytes": painted("blue", seed), "path": "x.png"}, "label": "blue"} for seed in range(10)]
    rows += [{"image": {"bytes": None, "path": "0.png"}, "label": "red"}]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    assert sum(map(len, (load(tmp_path / "train.parquet").train, ()))) == 17
    made = datasets.Dataset.from_list(rows[:2]).cast_column("image", datasets.Image())
    table = arrow.convert_dataset("made", made)
    assert table.rows[0].values["image"]["bytes"] == rows[0]["image"]["bytes"]


def test_the_same_image_in_two_splits_is_refused_by_name(tmp_path):
    write_rows(tmp_path, {"train": 8})
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join(rows[:2]))
    section = DataSection(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"))
    with pytest.raises(InputError, match=r"occur in the train split, too.*\n.*'0\.png'"):
        data.load(section, TASK, 0)


def test_tokens_of_an_image_follow_those_of_its_text_and_are_not_in_the_arrays(tokenizer_folder):
    text = Tokenizer.load(tokenizer_folder, 64)
    tokenizer = ImageTokenizer(Preprocessing.of(PREPROCESSING), 17, text)
    inputs = [Input(image=RED, text="a great film"), Input(image=RED, text="the plot is weak . " * 40)]
    (short,), (long,) = TASK.encode(inputs, tokenizer, Spec(("a", "b"), Options()))
    assert (len(short), len(long), tokenizer.max_tokens) == (17 + 5, 17 + 64, 17 + 64)
    batch = tokenizer.collate([short.encoding, long.encoding])
    expected = text.collate(text.encode([item.text for item in inputs]))
    assert {name: array.tolist() for name, array in batch.items()} == {
        name: array.tolist() for name, array in expected.items()
    }
    answer = TASK.answer(
        TASK.load({"scores": [[0.0, 2.0]], "lengths": [1]})[0],
        [long],
        inputs[1],
        Spec(("a", "b"), Options(abstain_below=0.9)),
    )
    assert (answer.label, answer.tokens, answer.truncated, answer.abstained) == ("b", 81, True, True)
    with pytest.raises(InputError, match="an image and a text"):
        TASK.encode([Input(image=RED)], tokenizer, Spec(("a", "b"), Options()))


def test_texts_of_models_that_know_full_length_only_are_padded_to_it(tokenizer_folder):
    text = Tokenizer.load(tokenizer_folder, 64)
    tokenizer = ImageTokenizer(Preprocessing.of(PREPROCESSING), 17, text, pads_to_full_length=True)
    ((features,),) = TASK.encode([Input(image=RED, text="a film")], tokenizer, Spec((), Options()))
    batch = tokenizer.collate([features.encoding])
    assert batch["input_ids"].shape == (1, 64)
    assert batch["input_ids"][0, 4:].tolist() == [text.pad_id] * 60
    assert batch["attention_mask"].all()
