"""Compares one package of several heads with as many packages of one task each.

The packages of one task are trained by the recipe of the heads, on the rows of their head, for as many epochs. Figures
are the quality on the test rows, the size of the graphs, the memory that loading them takes, and the time of all
answers for one text: one pass of the heads, or a pass of each package, on equal threads, in turn, in random order.
Ratios are medians over rounds with 95 % bootstrap intervals.

    python benchmarks/tasks/heads_against_packages.py benchmarks/recipes/five-heads.yaml --heads speech names \
        --output benchmarks/results/two-heads.json
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from deploykit import hardware, pipeline, recipe
from deploykit.artifact import GRAPH, Artifact
from deploykit.inference.predictor import Predictor
from deploykit.recipe import Recipe

TEXTS = (
    "A produção de petróleo na Bacia de Campos cresceu 12 % em março , segundo a Petrobras .",
    "An enjoyable film , but the plot is weak and the ending comes too late for its own good .",
)
ROUNDS = 100
MEMORY = """
import resource, sys
from deploykit.artifact import Artifact
from deploykit.inference.predictor import Predictor
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loaded = [Predictor.load(Artifact.load(path), 2) for path in sys.argv[1:]]
for predictor in loaded:
    predictor.predict(["a text of some words"])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""  # of a process of its own, in MB


def only(settings: Recipe, names: list[str]) -> Recipe:
    """Returns the recipe with some of its heads."""
    whole: Any = settings.task
    if set(names) == set(whole["heads"]):
        return settings
    task = {**whole, "heads": {name: whole["heads"][name] for name in names}}
    splits = {split: getattr(settings.data, split) for split in ("train", "validation", "test")}
    cut = {split: {name: files[name] for name in names} for split, files in splits.items()}
    content = settings.model_dump(exclude_unset=True)
    return Recipe.model_validate(
        {
            **content,
            "name": "-".join(names),
            "task": task,
            "data": {**content["data"], **cut},
            "output": f"{settings.output}-{'-'.join(names)}",
        }
    )


def memory_mb(paths: list[Path]) -> float:
    """Returns by how much the memory of a process grows that loads these packages."""
    command = [sys.executable, "-c", MEMORY, *map(str, paths)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def seconds(predictors: list[Predictor], text: str) -> float:
    """Times the answers of all predictors for a text."""
    start = time.perf_counter()
    for predictor in predictors:
        predictor.answers([text])
    return time.perf_counter() - start


def compared(heads: Predictor, packages: list[Predictor]) -> dict[str, Any]:
    """Times the heads and the packages in turn."""
    times: dict[str, list[float]] = {"heads": [], "packages": []}
    sides = [("heads", [heads]), ("packages", packages)]
    for number in range(-5, ROUNDS):
        for name, predictors in random.sample(sides, 2):
            elapsed = sum(seconds(predictors, text) for text in TEXTS) / len(TEXTS)
            if number >= 0:
                times[name].append(elapsed)
    ratios = np.array(times["packages"]) / np.array(times["heads"])
    medians = np.median(np.random.default_rng(0).choice(ratios, (1000, ROUNDS)), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    ms = {f"{name}_ms": 1000 * float(np.median(values)) for name, values in times.items()}
    return {**ms, "ratio": {"value": float(np.median(ratios)), "low": float(low), "high": float(high)}}


def main() -> None:
    """Writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--heads", nargs="+", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the recipe")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    settings, names = recipe.load(arguments.recipe, arguments.set), list(arguments.heads)
    runs = {"heads": pipeline.run(only(settings, names))[-1].artifact}
    runs |= {name: pipeline.run(only(settings, [name]))[-1].artifact for name in names}
    paths = {name: artifact.path for name, artifact in runs.items()}
    loaded = {name: Predictor.load(Artifact.load(path), hardware.cpu_limit()) for name, path in paths.items()}
    singles = [loaded[name] for name in names]
    figures: dict[str, Any] = {
        "machine": hardware.describe(),
        "recipe": arguments.recipe.name,
        "heads": names,
        "quality": {name: {"heads": _head(runs["heads"], name), "package": _head(runs[name], name)} for name in names},
        "minutes": {name: round(sum(s.seconds for s in run.manifest.history) / 60, 1) for name, run in runs.items()},
        "bytes": {
            "heads": (paths["heads"] / GRAPH).stat().st_size,
            "packages": sum((paths[name] / GRAPH).stat().st_size for name in names),
        },
        "memory_mb": {"heads": memory_mb([paths["heads"]]), "packages": memory_mb([paths[name] for name in names])},
        "time": compared(loaded["heads"], singles),
    }
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


def _head(artifact: Artifact, name: str) -> dict[str, Any]:
    """Returns the metrics of a head on the test split."""
    metrics = artifact.manifest.history[-1].metrics["test"]
    return {key: metric.model_dump() for key, metric in metrics.items() if key.startswith(f"{name}/")}


if __name__ == "__main__":
    main()
