"""Runs a recipe from its base model to a service, and writes down what each step gave.

It measures the untrained model (a new head on the pretrained encoder), the artifacts of all stages, TF-IDF with a
linear model on the same rows where the task allows it, and the time of single requests to the packaged service. Stages
that are finished are not run again; their times are those of the run that made them.

    R=movie-ratings
    python benchmarks/tasks/run_recipe.py benchmarks/recipes/$R.yaml --output benchmarks/results/task-$R.json
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import linear
import numpy as np
import transformers

import deploykit
from deploykit import data, hardware, pipeline, recipe, tasks
from deploykit.artifact import Metric
from deploykit.data import Dataset
from deploykit.evaluation import scoring
from deploykit.modeling import base_model, base_tokenizer
from deploykit.recipe import Recipe
from deploykit.stages.context import Job
from deploykit.stages.training import open_model

REQUESTS = 400  # to the service, one after the other, after as many as warm it up
WARM_UP_REQUESTS = 50
SAMPLES = 1000  # of the bootstrap


def untrained(settings: Recipe, dataset: Dataset) -> dict[str, Metric]:
    """Measures the base model with a new head on the test split; thresholds are tuned as for a trained one."""
    base = base_model.resolve(settings.model, settings.revision)
    transformers.set_seed(settings.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = Job(settings, "train", None, folder, folder, "", "", lambda: dataset)
        tokenizer = base_tokenizer.save(base, folder, settings.data.max_tokens)
        model, spec = open_model(job, base, tokenizer)
        predictor = job.torch_predictor(model.eval(), tokenizer, spec)
        predictions = scoring.predict_all(predictor, dataset)
    spec = tasks.tune_spec(job.task, spec, dataset.validation, predictions["validation"])
    return scoring.compute_metrics(job.task, spec, dataset, predictions, settings.seed)["test"]


def served_ms(package: Path, dataset: Dataset) -> Metric:
    """Returns the median time of requests with one input of the test split, in milliseconds."""
    requests = [_request(row.input) for row in dataset.test]
    times = []
    with deploykit.serve(package, port=0, auth=False) as service, deploykit.Client(service.url) as client:
        for number in range(WARM_UP_REQUESTS + REQUESTS):
            start = time.perf_counter()
            client.predict(**requests[number % len(requests)])
            times.append(1000 * (time.perf_counter() - start))
    rows = np.array(times[WARM_UP_REQUESTS:])
    medians = np.median(np.random.default_rng(0).choice(rows, (SAMPLES, len(rows))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return Metric(value=float(np.median(rows)), low=float(low), high=float(high))


def _request(item: tasks.Input) -> dict[str, Any]:
    """Returns the arguments of `Client.predict` for one input."""
    if type(item) is tasks.TextInput:
        return {"texts": [item.text], **({"text_pairs": [item.text_pair]} if item.text_pair else {})}
    return {"inputs": [item.model_dump(mode="json", exclude_none=True)]}


def main() -> None:
    """Writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the recipe")
    arguments = parser.parse_args()
    settings = recipe.load(arguments.recipe, arguments.set)
    task = tasks.load(settings.task_name, settings.task_options())
    dataset = data.load(settings.data, task, settings.seed)
    outcomes = pipeline.run(settings)
    manifest = outcomes[-1].artifact.manifest
    before = untrained(settings, dataset)
    steps = {f"{step.stage} ({step.method})": step for step in manifest.history}
    figures: dict[str, Any] = {
        "machine": hardware.describe(),
        "recipe": arguments.recipe.name,
        "task": settings.task_name,
        "base_model": manifest.base_model,
        "rows": dataset.summary["rows"],
        "minutes": round(sum(step.seconds for step in manifest.history) / 60, 1),
        "untrained": _dump(before),
        "stages": {name: _dump(step.metrics["test"]) for name, step in steps.items()},
        "bytes": {name: step.bytes for name, step in steps.items()},
        "served_ms": served_ms(outcomes[-1].artifact.path, dataset).model_dump(),
    }
    if settings.task_name in linear.TASKS:
        figures["linear"] = _dump(linear.measure(dataset, settings.task_name, settings.seed))
    table = manifest.details["train"]["test"].get("slices")
    if table:
        figures["slices"] = {name: {"rows": part["rows"], **part["metrics"]} for name, part in table.items()}
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


def _dump(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {name: metric.model_dump() for name, metric in metrics.items()}


if __name__ == "__main__":
    main()
