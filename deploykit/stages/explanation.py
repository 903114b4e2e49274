"""Explains the loss by quantization: the damage of each MatMul, and what it costs to keep the worst in float."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from deploykit import quantizers
from deploykit.errors import InputError
from deploykit.evaluation import timing
from deploykit.evaluation.timing import Latency
from deploykit.inference import golden
from deploykit.methods import Frozen
from deploykit.quantizers import auto
from deploykit.selection import candidates, sensitivity
from deploykit.selection.candidates import Spec
from deploykit.selection.evaluator import Bench
from deploykit.selection.sensitivity import Damage
from deploykit.stages import retuning
from deploykit.stages.opened_package import Package, open_package

TIMING_S = 10.0  # seconds for timing all graphs together


class Price(Frozen):
    """What a graph costs whose worst MatMuls stay in float.

    Attributes:
        kept: how many MatMuls stay in float.
        bytes: size of the graph.
        changed: how many golden texts get another prediction than from the float graph.
        latency: of one text, in milliseconds.
    """

    kept: int
    bytes: int
    changed: int
    latency: Latency


@dataclass(frozen=True)
class Explanation:
    """The damage of quantizing each MatMul, and the prices of keeping the worst ones in float.

    Attributes:
        name: of the quantized candidate.
        texts: number of golden texts.
        damages: of the MatMuls, worst first.
        prices: of graphs with more and more MatMuls in float, beginning with none.
    """

    name: str
    texts: int
    damages: list[Damage]
    prices: list[Price]


def explain_quantization(path: Path | str, quantizer: str | None = None) -> Explanation:
    """Ranks the MatMuls of a package's graph by the damage of quantizing them, measured on its golden texts.

    Args:
        path: of a package that carries its float graph.
        quantizer: to explain; default: the one of the chosen graph, or `dynamic` if the chosen graph is in float.

    Raises:
        InputError: the artifact is not a package, or the quantizer is `none` or `auto`.
        ArtifactError: the package is damaged or carries no float graph.

    Example:
        >>> explain_quantization("runs/movie-reviews/package").damages[0].node  # doctest: +SKIP
        '/bert/encoder/layer.3/output/dense/MatMul'
    """
    package = open_package(path)
    spec = candidates.spec_of(package.kept, package.base.engine.execution)
    if quantizer or spec.quantizer == "none":
        spec = replace(spec, graph="exported", quantizer=quantizer or "dynamic", options=(), float_nodes=())
    if spec.quantizer in ("none", "auto"):
        raise InputError(f"the quantizer `{spec.quantizer}` quantizes no MatMul itself. Name another one.")
    with tempfile.TemporaryDirectory() as folder:
        bench = retuning.make_bench(package, Path(folder), auto.Options(), {})
        method = quantizers.load(spec.quantizer)
        options = method.Options.model_validate(dict(spec.options))
        damages = sensitivity.rank(bench.variant(spec.graph), method, options, bench.calibration, Path(folder))
        kept_nodes = [(), *(tuple(sorted(nodes)) for nodes in sensitivity.groups(damages))]
        prices = _measure_prices([replace(spec, float_nodes=nodes) for nodes in kept_nodes], bench, package)
        return Explanation(replace(spec, float_nodes=()).name, len(package.golden.inputs), damages, prices)


def _measure_prices(specs: list[Spec], bench: Bench, package: Package) -> list[Price]:
    """Measures the size, the prediction changes and the latency of each graph."""
    predictors = [bench.open(spec) for spec in specs]
    length_name, text = next(iter(bench.workload.singles.items()))  # the latency is measured on this text only
    engines = {str(index): predictor.engine for index, predictor in enumerate(predictors)}
    latencies = timing.latencies(engines, replace(bench.workload, singles={length_name: text}), TIMING_S)
    return [
        Price(
            kept=len(spec.float_nodes),
            bytes=bench.file(spec).stat().st_size,
            changed=golden.count_changed(predictor, package.golden.predict(predictor), package.float_predictions),
            latency=latencies[str(index)][length_name],
        )
        for index, (spec, predictor) in enumerate(zip(specs, predictors, strict=True))
    ]


def damage_rows(explanation: Explanation) -> list[tuple[str, ...]]:
    """Returns a table row for each MatMul: its name, its relative squared error, and the same in decibels."""
    return [(entry.node, f"{entry.error:.2e}", f"{entry.decibels:.1f} dB") for entry in explanation.damages]


def price_rows(explanation: Explanation) -> list[tuple[str, ...]]:
    """Returns a table row for each graph: what stays in float, the bytes, the changed answers and the latency."""
    return [
        (
            f"the worst {price.kept}" if price.kept else "none",
            f"{price.bytes:,}",
            f"{price.changed} of {explanation.texts}",
            f"{price.latency.p50:.2f} ms ({price.latency.low:.2f} to {price.latency.high:.2f})",
        )
        for price in explanation.prices
    ]
