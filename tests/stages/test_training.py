"""What the first stage tunes on the validation split, and where it stands afterwards."""

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
