"""What a choice gains over what one would use without it: PyTorch, ONNX Runtime and OpenVINO as they are.

Every candidate gets all the cores that this process may use (`taskset -c 0` for one), and is asked in turn with
all others. Batch 1: each of some validation texts alone. Throughput: the same texts as they come; PyTorch takes them
in batches of 8 or of 32, whichever is faster, and everything else sorts them by length into batches of the size that
suits it best. Batches are padded as in use: for OpenVINO to the shapes that it compiles. Packages are chosen anew for
these cores, for latency and for throughput, from what they carry.

    python benchmarks/engines/compare_engines.py runs/reviews --pruned runs/reviews-pruned --output reviews.json
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from deploykit import data, hardware, recipe, tasks
from deploykit.artifact import GRAPH, Artifact
from deploykit.artifact.execution import Execution
from deploykit.engines import Engine
from deploykit.evaluation import scoring, timing
from deploykit.inference.predictor import Predictor, group_by_length, pad_for_engine
from deploykit.quantizers import auto
from deploykit.stages import retuning

TEXTS, COUNT = 64, 256  # timed alone; timed together
BUDGETS = (256, 512, 1024, 2048)
SECONDS = 60.0  # for each of the two measurements


def predictors(whole: Path, pruned: Path | None, minutes: float) -> dict[str, Predictor]:
    """Opens every candidate on all cores."""
    cores = hardware.cpu_limit()
    trained, exported = Artifact.load(whole / "train"), Artifact.load(whole / "export")
    found = {
        "torch float32": Predictor.load(trained, cores, Execution(engine="torch", threads=cores)),
        "torch bfloat16": Predictor.load(
            trained, cores, Execution(engine="torch", precision="bfloat16", threads=cores)
        ),
        "onnxruntime float32": Predictor.load(exported, cores, Execution(threads=cores)),
        "openvino bfloat16": Predictor.load(
            exported, cores, Execution(engine="openvino", precision="bfloat16", threads=cores)
        ),
    }
    for name, run in (("choice", whole), ("choice, pruned", pruned)):
        for objective in ("latency", "throughput") if run else ():
            chosen = run / f"chosen-{cores}-{objective}"
            if not chosen.exists():
                options = auto.Options(objective=objective, minutes=minutes)
                retuning.retune(run / "package", chosen, options)
            found[f"{name} for {objective}"] = Predictor.load(Artifact.load(chosen), cores)
    return found


def alone(found: dict[str, Predictor], rows: list[Any]) -> dict[str, Any]:
    """Returns milliseconds of each text, `(texts,)`, medians over rounds."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for row in rows:
        calls = {}
        for name, predictor in found.items():
            batch = pad_for_engine(predictor.encode([row.input])[0], predictor.tokenizer, predictor.engine)
            calls[name] = lambda run=predictor.engine.run, batch=batch: run(batch)
        for name, samples in timing.time_in_turn(calls, SECONDS / len(rows)).items():
            times[name].append(float(np.median(samples)))
    return {name: np.array(samples) for name, samples in times.items()}


def together(found: dict[str, Predictor], rows: list[Any]) -> dict[str, Any]:
    """Returns texts a second, `(rounds,)`, of the way to batch that suits each candidate best."""
    calls = {}
    for name, predictor in found.items():
        features = [part for parts in predictor.encode([row.input for row in rows]) for part in parts]
        for way, groups in ways(name, list(map(len, features)), predictor.engine).items():
            filled = [
                pad_for_engine([features[index] for index in group], predictor.tokenizer, predictor.engine)
                for group in groups
            ]
            calls[name, way] = lambda engine=predictor.engine, filled=filled: run_all(engine, filled)
    rates = {
        key: 1000 * len(rows) / samples for key, samples in timing.time_in_turn(calls, SECONDS, burst_calls=1).items()
    }
    best = {
        name: max((key for key in rates if key[0] == name), key=lambda key: np.median(rates[key])) for name in found
    }
    return {name: {"way": best[name][1], "rates": rates[best[name]]} for name in found}


def ways(name: str, lengths: list[int], engine: Engine) -> dict[str, list[list[int]]]:
    """Returns ways to batch texts: as they come for PyTorch, sorted for all others."""
    if name.startswith("torch"):
        order = list(range(len(lengths)))
        return {f"{size} as they come": [order[i : i + size] for i in range(0, len(order), size)] for size in (8, 32)}
    return {f"sorted, {budget} tokens": group_by_length(lengths, budget, engine.shape) for budget in BUDGETS}


def run_all(engine: Engine, filled: list[Any]) -> None:
    """Runs batches on all streams."""
    with ThreadPoolExecutor(engine.execution.streams) as pool:
        list(pool.map(engine.run, reversed(filled)) if engine.execution.streams > 1 else map(engine.run, filled))


def ratio(samples: Any, base: Any, seed: int = 0) -> dict[str, float]:
    """Returns how many times larger the median of `samples` is, with its 95 % bootstrap interval, paired."""
    drawn = np.random.default_rng(seed).integers(len(samples), size=(1000, len(samples)))
    spread = np.median(samples[drawn], axis=1) / np.median(base[drawn], axis=1)
    low, high = np.quantile(spread, [0.025, 0.975])
    return {"value": float(np.median(samples) / np.median(base)), "low": float(low), "high": float(high)}


def quality(predictor: Predictor, dataset: Any, seed: int) -> dict[str, float]:
    """Returns the task's first metric on the test split, with its interval."""
    task, spec = predictor.task, predictor.spec
    predictions = {"test": scoring.predict(predictor, dataset.test, "test")}
    return scoring.compute_metrics(task, spec, dataset, predictions, seed)["test"][task.METRICS[0]].model_dump()


def main() -> None:
    """Measures, prints the table and adds it to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="of the runs; its data is used")
    parser.add_argument("run", type=Path, help="directory of a finished run without pruning")
    parser.add_argument("--pruned", type=Path, help="directory of a finished run with pruning")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each choice")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    loaded = recipe.load(arguments.recipe)
    dataset = data.load(loaded.data, tasks.load(loaded.task_name), loaded.seed)
    found = predictors(arguments.run, arguments.pruned, arguments.minutes)
    random = np.random.default_rng(0)
    timed = [dataset.validation[index] for index in random.permutation(len(dataset.validation))[:TEXTS]]
    mixed = [dataset.test[index] for index in random.permutation(len(dataset.test))[:COUNT]]
    singles, rates = alone(found, timed), together(found, mixed)
    table = {
        name: {
            "test": quality(predictor, dataset, loaded.seed),
            "p50_ms": float(np.median(singles[name])),
            "times_faster_alone": ratio(singles["torch float32"], singles[name]),
            "texts_a_second": float(np.median(rates[name]["rates"])),
            "times_faster_together": ratio(rates[name]["rates"], rates["torch float32"]["rates"]),
            "batches": rates[name]["way"],
            "bytes": size_of(name, arguments),
            "execution": predictor.engine.execution.model_dump(),
        }
        for name, predictor in found.items()
    }
    content = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    content[f"{hardware.cpu_limit()} cores"] = {"machine": hardware.describe(), "table": table}
    arguments.output.write_text(json.dumps(content, indent=2) + "\n")
    print(markdown(table))


def size_of(name: str, arguments: argparse.Namespace) -> int:
    """Returns the bytes of the weights or of the graph."""
    run = arguments.pruned if "pruned" in name else arguments.run
    if name.startswith("torch"):
        return Artifact.load(run / "train").manifest.step.bytes
    if name.startswith("choice"):
        run = run / f"chosen-{hardware.cpu_limit()}-{name.rsplit(' ', 1)[1]}"
        return (run / GRAPH).stat().st_size
    return (run / "export" / GRAPH).stat().st_size


def markdown(table: dict[str, Any]) -> str:
    """Returns the table with intervals."""
    lines = ["| what | test | p50 alone | times | texts a second | times | MB |", "|---|---|---|---|---|---|---|"]
    for name, row in table.items():
        test, one, many = row["test"], row["times_faster_alone"], row["times_faster_together"]
        lines.append(
            f"| {name} | {test['value']:.4f} ({test['low']:.4f} to {test['high']:.4f}) | {row['p50_ms']:.2f} ms |"
            f" {one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f}) | {row['texts_a_second']:.0f} |"
            f" {many['value']:.2f} ({many['low']:.2f} to {many['high']:.2f}) | {row['bytes'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
