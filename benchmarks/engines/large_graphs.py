"""Sends graphs of BERT-base's and T5-small's size, with random weights, through every variant, quantizer and engine.

It takes some minutes, 12 GB of memory and 2 GB of disk, and downloads nothing. Each line says how long a step took,
the size of what it wrote beside the float graph's, and how near the outputs stayed to it; below each quantizer, the
engines that claim its graphs run it, and answer as near.

    python benchmarks/engines/large_graphs.py
"""

import logging
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from deploykit import engines, hardware, quantizers
from deploykit.artifact import WEIGHTS
from deploykit.artifact.execution import Execution
from deploykit.errors import DeploykitError
from deploykit.graphs import variants
from deploykit.modeling import checkpoint
from deploykit.selection import sensitivity
from deploykit.stages import exporting

ROWS, TOKENS, HIDDEN = 8, 32, 512


def bert(folder: Path) -> Iterator[Path]:
    """Exports a classifier of 110 million weights."""
    model = transformers.BertForSequenceClassification._from_config(
        transformers.BertConfig(), attn_implementation="eager"
    )
    exporting.write_graph(model.eval(), folder, "text-classification", 18)
    checkpoint.save(model, folder)
    yield folder / "model.onnx"


def t5(folder: Path) -> Iterator[Path]:
    """Exports the encoder and the decoder of a model of 60 million weights."""
    config = transformers.T5Config(d_model=HIDDEN, num_layers=6, num_heads=8, d_ff=2048, decoder_start_token_id=0)
    model = transformers.T5ForConditionalGeneration._from_config(config, attn_implementation="eager")
    exporting.write_graph(model.eval(), folder, "text2text-generation", 18)
    yield from (folder / "encoder_model.onnx", folder / "decoder_model.onnx")


def batches(seed: int) -> list[dict[str, Any]]:
    """Makes inputs for all of the graphs; each takes those that it knows."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(TOKENS) < rng.integers(TOKENS // 2, TOKENS + 1, (ROWS, 1))).astype(np.int64)
    return [
        {
            "input_ids": rng.integers(1, 30000, (ROWS, TOKENS)),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
            "encoder_attention_mask": mask,
            "encoder_hidden_states": rng.normal(size=(ROWS, TOKENS, HIDDEN)).astype(np.float32),
        }
    ]


def first_output(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the logits, or the states of an encoder."""
    return next(iter(outputs.values()))


def decibels(before: np.ndarray, after: np.ndarray) -> float:
    """Returns the signal to noise ratio of logits, or other first outputs, of the same shape."""
    return sensitivity.decibels(sensitivity.damage(before, after))


def report(name: str, step: Callable[[Path], dict[str, Any]], source: Path, target: Path) -> None:
    """Runs a step and prints one line about it."""
    start = time.perf_counter()
    try:
        facts = step(target)
    except DeploykitError as error:
        print(f"| {name} | {time.perf_counter() - start:.1f} s | refused: {error} |", flush=True)
        return
    seconds, memory = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (batch,) = batches(1)
    engine, execution = engines.load("onnxruntime"), Execution(threads=hardware.cpu_limit())
    near = decibels(*(first_output(engine.load(graph, execution).run(batch)) for graph in (source, target)))
    share = target.stat().st_size / source.stat().st_size
    print(f"| {name} | {seconds:.1f} s | {share:.2f} | {near:.0f} dB | {memory:.1f} GB so far | {facts} |", flush=True)


def run_everywhere(name: str, claimed: Sequence[str], model: Path, source: Path) -> None:
    """Runs a graph, or a checkpoint, in every engine that claims it, and prints a line for each precision."""
    (batch,) = batches(1)
    before = first_output(engines.load("onnxruntime").load(source, Execution(threads=hardware.cpu_limit())).run(batch))
    for engine in claimed:
        for precision in engines.load(engine).PRECISIONS:
            execution = Execution(engine=engine, precision=precision, threads=hardware.cpu_limit())
            opened = engines.load(engine).load(model, execution)
            opened.run(batch)
            start = time.perf_counter()
            after = first_output(opened.run(batch))
            seconds = time.perf_counter() - start
            near = decibels(before, after)
            print(f"| {name} in {execution} | {1000 * seconds:.0f} ms | {near:.0f} dB |", flush=True)


def main() -> None:
    """Prints the table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    for export in (bert, t5):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for graph in export(folder):
                label = f"{export.__name__} {graph.stem}"
                for variant in variants.VARIANTS:
                    report(
                        f"{label} {variant}",
                        lambda to, v=variant, g=graph: variants.write(v, g, to),
                        graph,
                        folder / "v",
                    )
                for method in quantizers.writers():
                    found = quantizers.load(method)
                    report(
                        f"{label} {method}",
                        lambda to, q=found, g=graph: q.quantize(g, q.Options(), to, batches(0)),
                        graph,
                        folder / "q",
                    )
                    run_everywhere(f"{label} {method}", found.ENGINES, folder / "q", graph)
                if (folder / WEIGHTS).exists():
                    run_everywhere(f"{label} checkpoint", ("torch",), folder, graph)
                dynamic = quantizers.load("dynamic")
                start = time.perf_counter()
                ranking = sensitivity.rank(graph, dynamic, dynamic.Options(), batches(2), folder)
                print(
                    f"| {label} ranking | {time.perf_counter() - start:.1f} s for {len(ranking)} products |", flush=True
                )


if __name__ == "__main__":
    main()
