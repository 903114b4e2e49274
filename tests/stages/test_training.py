"""What the first stage tunes on the validation split and measures, and where it stands afterwards."""

import json

import pytest

import deploykit
from deploykit.artifact import load_predictions
from deploykit.tasks import of_manifest, spec_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_tuned_threshold_stands_in_the_manifest_and_the_report_measures_it(tiny_recipe, tmp_path):
    path = tiny_recipe(tmp_path, prune=None, train={"method": "full", "epochs": 1, "learning_rate": 1e-3})
    overrides = ["task.method=text-classification", "task.abstain_accuracy=0.9"]
    trained = deploykit.train(deploykit.load_recipe(path, overrides))
    manifest = trained.manifest
    below = manifest.task_options["abstain_below"]
    assert manifest.task_options["abstain_accuracy"] is None
    assert spec_of(manifest).options.abstain_below == below

    predictions = of_manifest(manifest).load(load_predictions(trained)["test"])
    observed = of_manifest(manifest).observe(predictions, spec_of(manifest))
    chosen = manifest.own["test"]["abstention"]["chosen"]
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
