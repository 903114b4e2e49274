"""What the first stage tunes on the validation split and measures, and where it stands afterwards."""

import json
import shutil

import pytest

import deploykit
from deploykit.artifact import load_predictions
from deploykit.inference import golden
from deploykit.tasks import TextInput, spec_of, task_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_tuned_threshold_stands_in_the_manifest_and_the_report_measures_it(tiny_recipe, tmp_path):
    path = tiny_recipe(tmp_path, prune=None, train={"method": "full", "epochs": 1, "learning_rate": 1e-3})
    overrides = ["task.method=text-classification", "task.abstain_accuracy=0.9"]
    trained = deploykit.train(deploykit.load_recipe(path, overrides))
    manifest = trained.manifest
    below = manifest.task_options["abstain_below"]
    assert manifest.task_options["abstain_accuracy"] is None
    assert spec_of(manifest).options.abstain_below == below

    predictions = task_of(manifest).load(load_predictions(trained)["test"])
    observed = task_of(manifest).observe(predictions, spec_of(manifest))
    chosen = manifest.own_details["test"]["abstention"]["chosen"]
    assert chosen["threshold"] == below
    assert chosen["coverage"]["value"] == 1 - observed.abstained / len(predictions)


def write_queries(file, nouns):
    """Three candidates for each query, of which the one with the same noun is relevant."""
    rows = [
        {"text": f"the {noun}", "text_pair": f"a {other} was great", "label": int(noun == other)}
        for number, noun in enumerate(nouns)
        for other in (noun, *(nouns[(number + step) % len(nouns)] for step in (1, 2)))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_candidates_of_a_query_are_judged_as_a_ranking(tiny_recipe, tmp_path):
    nouns = ("film", "plot", "story", "end", "cast")
    splits = {"train": nouns, "validation": [f"{noun} s" for noun in nouns], "test": [f"{noun} a" for noun in nouns]}
    files = {name: write_queries(tmp_path / f"{name}.jsonl", rows) for name, rows in splits.items()}
    path = tiny_recipe(
        tmp_path,
        data={**files, "text_pair": "text_pair"},
        train={"method": "full", "epochs": 1, "learning_rate": 1e-3},
        **dict.fromkeys(("prune", "export", "quantize", "package")),
    )
    (outcome,) = deploykit.run(deploykit.load_recipe(path))
    metrics = outcome.artifact.manifest.step.metrics
    for split in ("validation", "test"):
        assert list(metrics[split])[-2:] == ["mrr", "ndcg_at_10"]
        assert 1 / 3 <= metrics[split]["mrr"].low <= metrics[split]["mrr"].high <= 1
    report = (outcome.artifact.path.parent / "report.md").read_text()
    assert f"mrr {metrics['test']['mrr'].value:.4f} (95 % interval" in report


def write_scores(file, scores):
    """Rows with numbers, which the tiny model need not learn."""
    rows = [{"text": f"the film {number}", "score": score} for number, score in enumerate(scores)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_model_that_is_not_trained_keeps_the_scale_of_its_numbers(tiny_recipe, tmp_path):
    nothing = dict.fromkeys(("prune", "export", "quantize", "package"))
    sections = {"task": "regression", **nothing, "data": {"allow_leakage": True}}
    sections["data"] |= {
        name: write_scores(tmp_path / f"{name}.jsonl", (1, 2, 6)) for name in ("train", "validation", "test")
    }
    quick = {"method": "full", "epochs": 1, "learning_rate": 1e-3}
    trained = deploykit.train(deploykit.load_recipe(tiny_recipe(tmp_path, train=quick, **sections)))
    assert trained.manifest.task_options["mean"] == 3

    sections["data"]["train"] = write_scores(tmp_path / "train.jsonl", (100, 200, 300))
    path = tiny_recipe(tmp_path, train=None, model=str(trained.path), **sections)
    again = deploykit.train(deploykit.load_recipe(path))
    for name in ("mean", "deviation"):
        assert again.manifest.task_options[name] == trained.manifest.task_options[name]
    named = deploykit.train(deploykit.load_recipe(path, ["task={method: regression, mean: 10, deviation: 2}"]))
    assert (named.manifest.task_options["mean"], named.manifest.task_options["deviation"]) == (10, 2)


def test_a_head_without_labels_in_a_split_is_named(tiny_recipe, tmp_path, caplog):
    rows = [{"text": f"the film {number}", "mood": "ab"[number % 2], "stars": number} for number in range(8)]
    files = {}
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = str(tmp_path / f"{name}.jsonl")
        rows = [{key: value for key, value in row.items() if key != "stars"} for row in rows]
    heads = {
        "mood": {"method": "text-classification", "columns": {"label": "mood"}},
        "points": {"method": "regression", "columns": {"score": "stars"}},
    }
    path = tiny_recipe(
        tmp_path,
        task={"method": "multi-task", "heads": heads},
        data={**files, "allow_leakage": True},
        train={"method": "full", "epochs": 1, "learning_rate": 1e-3},
        **dict.fromkeys(("prune", "export", "quantize", "package")),
    )
    deploykit.train(deploykit.load_recipe(path))
    for split in ("validation", "test"):
        assert f"the {split} split has no labels of the head points, which is not evaluated there" in caplog.text
    assert "no labels of the head mood" not in caplog.text


NO_STAGES = dict.fromkeys(("prune", "export", "quantize", "package"))
QUICK = {"method": "full", "epochs": 1, "learning_rate": 1e-3}


def class_of(trained):
    return json.loads((trained.path / "config.json").read_text())["architectures"]


@pytest.fixture
def encoder(tiny_encoder, tokenizer_folder, tmp_path):
    """`encoder(kind) -> folder` of a base model without a head."""

    def build(kind):
        model = tiny_encoder(kind)
        model.base_model.save_pretrained(tmp_path / kind)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer_folder / name, tmp_path / kind)
        return str(tmp_path / kind)

    return build


def test_a_new_head_reads_the_mean_of_an_encoder(encoder, tiny_recipe, tmp_path):
    """A decoder, whose tokens know only what is before them, and a model that has a head keep the usual class."""

    def trained(folder, **sections):
        sections = {"train": QUICK, **NO_STAGES, **sections}
        return deploykit.train(deploykit.load_recipe(tiny_recipe(tmp_path / folder, **sections)))

    pooled = trained("bert", model=encoder("bert"))
    assert class_of(pooled) == ["EncoderWithHeads"]
    assert class_of(trained("mean", train={**QUICK, "pooling": "mean"})) == ["EncoderWithHeads"]
    assert class_of(trained("usual")) == ["BertForSequenceClassification"]
    assert class_of(trained("model", model=encoder("bert"), train={**QUICK, "pooling": "model"})) == [
        "BertForSequenceClassification"
    ]
    assert class_of(trained("gpt2", model=encoder("gpt2"))) == ["GPT2ForSequenceClassification"]

    renamed = {"positive": "negative", "negative": "positive"}
    kept = trained("kept", model=str(pooled.path), train=None)
    swapped = trained("swapped", model=str(pooled.path), train=None, labels=renamed)
    assert kept.manifest.step.metrics["test"] == pooled.manifest.step.metrics["test"]
    accuracy = [artifact.manifest.step.metrics["test"]["accuracy"].value for artifact in (kept, swapped)]
    assert accuracy[1] == pytest.approx(1 - accuracy[0])
    further = trained("further", model=str(pooled.path))
    assert class_of(further) == ["EncoderWithHeads"]


@pytest.mark.parametrize("task", ["text-classification", "regression", "multi-label-classification"])
def test_a_pooled_model_goes_all_the_way(task, encoder, review_files, tiny_recipe, tmp_path):
    files = {}
    for name in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (review_files / f"{name}.jsonl").read_text().splitlines()]
        rows = [{**row, "labels": [row["label"], *row["text"].split()[:1]], "score": len(row["text"])} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files[name] = str(tmp_path / f"{name}.jsonl")
    path = tiny_recipe(
        tmp_path,
        task={"method": task},
        data=files,
        model=encoder("bert"),
        train=QUICK,
        prune={"method": "width", "keep": 0.5, "distill": {"epochs": 1}} if task == "text-classification" else None,
        quantize={"method": "dynamic"},
        gates={"max_drop": 1.0, "inconclusive": "accept"},
    )
    outcomes = deploykit.run(deploykit.load_recipe(path))
    package = outcomes[-1].artifact
    assert package.manifest.step.stage == "package"
    golden.verify(package.path)
    predictor = deploykit.Predictor.load(package, cores=1)
    stored = predictor.task.load(load_predictions(package)["test"])
    given = [TextInput(text=row["text"]) for row in rows]
    for one, other in zip(predictor.predict(given), stored, strict=True):
        assert predictor.task.distance(one, other) < 0.03


def test_a_model_that_answers_all_texts_alike_is_named(tiny_recipe, tmp_path, caplog):
    nothing = {**QUICK, "learning_rate": 1e-12}
    path = tiny_recipe(tmp_path, train=nothing, **NO_STAGES, data={"allow_leakage": True, **same_texts(tmp_path)})
    deploykit.train(deploykit.load_recipe(path))
    assert "the model gives all 6 texts of the validation split nearly the same answer" in caplog.text
    assert "Lower learning_rate, which is 1e-12" in caplog.text


def same_texts(folder):
    """Texts that differ in a word that the tokenizer does not have."""
    files = {}
    for name in ("train", "validation", "test"):
        rows = [{"text": f"film {chr(0x2600 + number)}", "label": "ab"[number % 2]} for number in range(6)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        files[name] = str(folder / f"{name}.jsonl")
    return files
