"""Batch-1 latency and accuracy: the trained model in PyTorch float32 eager against the packaged graph.

Every text is asked of both, one after the other, in an order that alternates, with as many threads for each;
what is reported is the median of each and the median of the ratios with its 95 % bootstrap interval, so that
a machine whose speed drifts does not favour either. Accuracies are those of the manifests (test split).

    python benchmarks/engines/compare_with_torch.py demo/runs/movie-reviews --threads 1 2
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from deploykit import hardware
from deploykit.artifact import Artifact
from deploykit.inference import golden
from deploykit.inference.predictor import Predictor, pad_for_engine

PAUSE_S = 0.002  # lets the other engine's threads go to sleep


def timings(run: Path, threads: int, rounds: int) -> dict[str, np.ndarray]:
    """Returns milliseconds of each call, `(calls,)`, the same texts in the same order for both."""
    package = Artifact.load(run / "package")
    predictors = {
        "torch": Predictor.load(Artifact.load(run / "train"), threads),
        "package": Predictor.load(package, threads),
    }
    inputs = golden.load(package).items(predictors["package"].task)
    encoded = predictors["package"].encode(inputs)
    found: dict[str, list[float]] = {name: [] for name in predictors}
    for turn in range(rounds + 1):
        for index, features in enumerate(encoded):
            for name in sorted(predictors, reverse=bool((turn + index) % 2)):
                batch = pad_for_engine(features, predictors["torch"].tokenizer, predictors[name].engine)
                time.sleep(PAUSE_S)
                start = time.perf_counter()
                predictors[name].engine.run(batch)
                if turn:  # the first round warms up
                    found[name].append((time.perf_counter() - start) * 1000)
    return {name: np.array(values) for name, values in found.items()}


def interval(values: np.ndarray, resamples: int = 2000) -> tuple[float, float, float]:
    """Returns the median and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (resamples, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def main() -> None:
    """Measures, prints a table, and writes the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, hardware.cpu_limit()])
    parser.add_argument("--rounds", type=int, default=5, help="how often each of the 64 texts is asked")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    history = Artifact.load(arguments.run / "package").manifest.history
    metric = next(iter(history[0].metrics["test"]))
    trained, packaged = history[0].metrics["test"][metric], history[-1].metrics["test"][metric]
    print(f"test {metric}: trained {trained.value:.4f} ({trained.low:.4f} to {trained.high:.4f}),", end=" ")
    print(f"packaged {packaged.value:.4f} ({packaged.low:.4f} to {packaged.high:.4f})")
    print("threads  torch p50 ms  package p50 ms  times faster (95 % interval)")
    results = []
    for threads in dict.fromkeys(arguments.threads):
        found = timings(arguments.run, threads, arguments.rounds)
        ratio, low, high = interval(found["torch"] / found["package"])
        medians = {name: float(np.median(values)) for name, values in found.items()}
        print(
            f"{threads:7d}  {medians['torch']:12.2f}  {medians['package']:14.2f}  {ratio:.2f} ({low:.2f} to {high:.2f})"
        )
        results.append({"threads": threads, "p50_ms": medians, "ratio": ratio, "low": low, "high": high})
    if arguments.json:
        content = {"machine": hardware.describe(), "metric": metric, "trained": trained.value}
        content |= {"packaged": packaged.value, "results": results}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
