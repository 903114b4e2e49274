"""The page of figures, made of the JSON files in benchmarks/results: no number is typed by hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENGINE_RUNS = {
    "engines-movie-reviews.json": "Movie reviews (2 classes, 27 tokens on average)",
    "engines-movie-reviews-without-amx.json": "Movie reviews, on another CPU",
    "engines-medical-topics.json": "Medical topics (18 classes, 18 tokens)",
    "engines-lexical-relations.json": "Lexical relations (pairs, 7 classes, 34 tokens)",
}
ROWS = {
    "torch float32": "PyTorch float32",
    "torch bfloat16": "PyTorch bfloat16",
    "onnxruntime float32": "ONNX Runtime float32",
    "openvino bfloat16": "OpenVINO bfloat16",
    "choice for latency": "chosen for latency",
    "choice for throughput": "chosen for throughput",
    "choice, pruned for latency": "pruned, chosen for latency",
    "choice, pruned for throughput": "pruned, chosen for throughput",
}
BATCHING = {
    "cost": "deploykit",
    "fifo": "in order of arrival (`fifo`)",
    "none": "each text alone (`none`)",
    "bentoml": "BentoML's adaptive batching (`bentoml`)",
    "bentoml as documented": "a BentoML service as documented",
}

TRACE_S = 10  # seconds of each recorded trace


def page(folder: Path) -> str:
    """Returns the page.

    Args:
        folder: of the JSON files.
    """
    results = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    return "\n".join([INTRODUCTION, *of_tasks(results), *engines(results), *pruning(results), *serving(results)])


INTRODUCTION = """# Benchmarks

Every figure on this page is read from `benchmarks/results/*.json`, which also hold the intervals. Each table names the
CPU it was measured on; compare ratios, not milliseconds, between machines. Times of a table that compares engines,
queues or packages were measured in turn, interleaved, with equal threads.
"""


def machine(content: dict[str, Any]) -> str:
    """Names a CPU and what it has of the units that matter here."""
    features = set(content["cpu_features"])
    units = [
        name
        for name, needed in (("AMX", "amx_int8"), ("AVX-512 with VNNI", "avx512_vnni"), ("AVX2", "avx2"))
        if needed in features
    ]
    return f"{content['cpu']} ({units[0]}), {content['cores']} cores"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def of_tasks(results: dict[str, Any]) -> Iterator[str]:
    """Yields what each task reaches on public data, and several heads against as many packages."""
    tasks = {name: content for name, content in results.items() if name.startswith("task-")}
    if not tasks:
        return
    yield (
        "## Tasks\n\nThe first metric of each task on the test rows, with its 95 % interval: of the base model with a new"
        " head, and after each stage. The comments of the recipes in `benchmarks/recipes` say where the data comes from."
        " *Linear* is TF-IDF of words and pairs of words with a linear model, its regularization chosen on the validation"
        " rows. *Minutes* are those of the whole recipe; *served* is the median time of a request with one input, over"
        " HTTP.\n\n```sh\npython benchmarks/tasks/run_recipe.py RECIPE --output FILE\n```\n"
    )
    header = ["recipe", "metric", "linear", "untrained", "trained", "pruned", "packaged", "minutes", "served", "CPU"]
    yield table(header, [task_row(content) for content in tasks.values()])
    for content in tasks.values():
        if "slices" in content:
            yield from slices(content)
    yield from heads({name: content for name, content in results.items() if name.endswith("-heads.json")})


def task_row(content: dict[str, Any]) -> list[str]:
    """Returns a row of the table of tasks."""
    metric = next(iter(content["untrained"]))
    stages = {name.split()[0]: metrics[metric] for name, metrics in content["stages"].items()}
    linear = content.get("linear", {}).get(metric)
    return [
        content["recipe"].removesuffix(".yaml"),
        metric,
        interval(linear, 3) if linear else "",
        interval(content["untrained"][metric], 3),
        interval(stages["train"], 3),
        interval(stages["prune"], 3) if "prune" in stages else "",
        interval(stages["package"], 3),
        f"{content['minutes']:.0f}",
        f"{content['served_ms']['value']:.1f} ms",
        machine(content["machine"]),
    ]


def slices(content: dict[str, Any]) -> Iterator[str]:
    """Yields the metrics of the trained model by slice."""
    name, metric = content["recipe"].removesuffix(".yaml"), next(iter(content["untrained"]))
    yield f"{name}, as trained, by slice:\n"
    rows = [[key, str(part["rows"]), interval(part[metric], 3)] for key, part in content["slices"].items()]
    yield table(["slice", "rows", metric], rows)


def heads(results: dict[str, Any]) -> Iterator[str]:
    """Yields packages of several heads against as many packages of one task each."""
    if not results:
        return
    yield (
        "### Several heads on one encoder\n\nAgainst as many packages of one task each, on the same rows, for as many"
        " epochs.\n\n```sh\npython benchmarks/tasks/heads_against_packages.py RECIPE --heads NAMES --output FILE\n```\n"
    )
    for content in results.values():
        yield f"{len(content['heads'])} heads, on {machine(content['machine'])}:\n"
        rows = []
        for sides in content["quality"].values():
            metric = next(iter(sides["heads"]))
            rows.append([metric, interval(sides["heads"][metric], 3), interval(sides["package"][metric], 3)])
        time, memory, sizes = content["time"], content["memory_mb"], content["bytes"]
        ratio = interval(time["ratio"], 2)
        rows += [
            ["all answers for a text", f"{time['heads_ms']:.1f} ms", f"{time['packages_ms']:.1f} ms, {ratio} times"],
            ["memory", f"{memory['heads']:.0f} MB", f"{memory['packages']:.0f} MB"],
            ["graphs", f"{sizes['heads'] / 1e6:.0f} MB", f"{sizes['packages'] / 1e6:.0f} MB"],
        ]
        yield table(["", "one package", "a package each"], rows)


def engines(results: dict[str, Any]) -> Iterator[str]:
    """Yields the comparison of engines, a table for each data set."""
    yield (
        "## Engines and compression\n\nall-MiniLM-L6-v2, fine-tuned for three epochs; one text at a time, and 256 texts of"
        " mixed lengths, which PyTorch takes as they come and all others sorted. `pruned` is the width pruner at"
        " `speedup: 2` for throughput, distilled. Where there are two figures, the first is on one thread and the second"
        " on two.\n\n```sh\npython benchmarks/engines/compare_engines.py RECIPE RUN --pruned RUN --output FILE\n```\n"
    )
    for name, title in ENGINE_RUNS.items():
        if name in results:
            runs = [results[name][key] for key in sorted(results[name])]  # "1 cores", "2 cores"
            yield f"### {title}\n\nOn {machine(runs[-1]['machine'])}; `benchmarks/results/{name}`.\n"
            header = ["what", "test accuracy", "p50 of one text, ms", "times PyTorch", "texts/s", "times PyTorch", "MB"]
            yield table(
                header, [engine_row(key, shown, runs) for key, shown in ROWS.items() if key in runs[0]["table"]]
            )


def engine_row(key: str, shown: str, runs: list[dict[str, Any]]) -> list[str]:
    """Returns a row: the figures of each number of threads, joined where they differ."""
    rows = [run["table"][key] for run in runs]

    def joined(*texts: str) -> str:
        return texts[0] if len(set(texts)) == 1 else " / ".join(texts)

    return [
        shown,
        joined(*(f"{row['test']['value']:.4f}" for row in rows)),
        joined(*(f"{row['p50_ms']:.2f}" for row in rows)),
        joined(*(f"{row['times_faster_alone']['value']:.1f}" for row in rows)),
        joined(*(f"{row['texts_a_second']:.0f}" for row in rows)),
        joined(*(f"{row['times_faster_together']['value']:.1f}" for row in rows)),
        joined(*(f"{row['bytes'] / 1e6:.0f}" for row in rows)),
    ]


def pruning(results: dict[str, Any]) -> Iterator[str]:
    """Yields what speedups cost in accuracy."""
    content = results["width-speedups.json"]
    yield (
        "## Width pruning to measured speedups\n\nWhat it loses on the test rows, paired, with the 95 % interval; on"
        f" {machine(content['machine'])}.\n\n```sh\npython benchmarks/pruning/width_speedups.py RECIPE --epochs 4 --output"
        " DIRECTORY\n```\n"
    )
    rows = sorted(content["rows"].values(), key=lambda row: (row["way"], row["wanted"]))
    yield table(
        ["recovery", "wanted", "measured", "loss"],
        [
            [row["way"], f"{row['wanted']:g}", f"{row['measured']['value']:.2f}", interval(row["drops"]["test"])]
            for row in rows
        ],
    )


def interval(metric: dict[str, float], digits: int = 4) -> str:
    """Writes a value with its interval."""
    value, low, high = (f"{metric[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def serving(results: dict[str, Any]) -> Iterator[str]:
    """Yields the service under load."""
    yield (
        "## The service under load\n\nServer on one core, client on the other, over HTTP with a key; Poisson arrivals, nine"
        " short texts to a long one. Loads are shares of what the engine does in process. Cells: texts answered a second,"
        " p50 / p99 in ms, share without an answer (503, or none in 15 s).\n\n```sh\npython benchmarks/serving/batching.py"
        " PACKAGE --texts demo/test.jsonl --rounds 2 --seconds 10 --output FILE\n```\n"
    )
    for name in ("batching.json", "batching-without-amx.json"):
        content = results[name]
        loads = content["loads"]
        yield f"On {machine(content['machine'])}; the engine does {content['capacity']['mixed']:.0f} mixed texts/s:\n"
        header = ["batching", *(f"{float(load):.0%}" for load in loads["cost"])]
        yield table(header, [[BATCHING[key], *map(load_cell, runs.values())] for key, runs in loads.items()])
    yield (
        "Three times the load that the engine carries, for five minutes (`python benchmarks/serving/overload.py PACKAGE"
        " --texts demo/test.jsonl --output FILE`):\n"
    )
    rows = [overload_row(results[name]) for name in ("overload.json", "overload-without-amx.json")]
    yield table(["CPU", "texts/s at 90 %", "texts/s at 300 %", "p99 at 90 %", "p99 at 300 %", "memory grew by"], rows)


def load_cell(runs: list[dict[str, float]]) -> str:
    """Means of the recorded traces."""
    served, p50, p99 = (sum(run[key] for run in runs) / len(runs) for key in ("served", "p50_ms", "p99_ms"))
    errors = sum(run["errors"] for run in runs) / len(runs)
    share = errors / (errors + served * TRACE_S)
    return f"{served:.0f}, {p50:.0f} / {p99:.0f}, {share:.0%}"


def overload_row(content: dict[str, Any]) -> list[str]:
    """Returns a row of the overload table."""
    before, during, memory = content["before"], content["during"], content["memory"]
    return [
        machine(content["machine"]),
        f"{before['served']:.0f}",
        f"{during['served']:.0f}",
        f"{before['p99_ms']:.0f} ms",
        f"{during['p99_ms']:.0f} ms",
        f"{(memory['most'] - memory['start']) / 1e6:.0f} MB",
    ]
