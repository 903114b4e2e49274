"""Why a quantized graph answers as it does: which products do the damage, and what their return to float costs."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from deploykit import quantizers
from deploykit.artifact import Record
from deploykit.errors import InputError
from deploykit.evaluation import timing
from deploykit.evaluation.timing import Latency
from deploykit.inference import golden
from deploykit.quantizers import auto
from deploykit.selection import candidates, sensitivity
from deploykit.selection.candidates import Spec
from deploykit.selection.evaluator import Bench
from deploykit.selection.sensitivity import Damage
from deploykit.stages import retuning
from deploykit.stages.retuning import Carried

SECONDS = 10.0  # for timing the graphs together


class Price(Record):
    """A graph whose `kept` worst products are in float.

    `changed` counts the golden texts that it answers otherwise than the float graph does, and `latency` is that
    of one text of median length, in milliseconds.
    """

    kept: int
    bytes: int
    changed: int
    latency: Latency


@dataclass(frozen=True)
class Explanation:
    """What was explained, the damage of each product, the worst first, and the price of keeping them in float."""

    name: str
    texts: int
    damages: list[Damage]
    prices: list[Price]


def explain_quantization(path: Path | str, quantizer: str | None = None) -> Explanation:
    """Ranks the products of a package's graph by the damage that quantizing them does, on its golden texts.

    Args:
        path: of a package that carries its float graph.
        quantizer: to explain; default: that of the graph that was chosen, or `dynamic` where that is in float.

    Raises:
        InputError: the artifact is no package, or there is nothing to explain about this quantizer.
        ArtifactError: it is damaged or carries no float graph.

    Example:
        >>> explain_quantization("runs/movie-reviews/package").damages[0].node  # doctest: +SKIP
        '/bert/encoder/layer.3/output/dense/MatMul'
    """
    package = retuning.carried(path)
    spec = candidates.spec_of(package.kept, package.base.engine.execution)
    if quantizer or spec.quantizer == "none":
        spec = replace(spec, graph="exported", quantizer=quantizer or "dynamic", options=(), keep=())
    if spec.quantizer in ("none", "auto"):
        raise InputError(f"the quantizer `{spec.quantizer}` changes no product by itself. Name another one.")
    with tempfile.TemporaryDirectory() as folder:
        bench = retuning.bench_of(package, Path(folder), auto.Options(), {})
        method = quantizers.load(spec.quantizer)
        options = method.Options.model_validate(dict(spec.options))
        damages = sensitivity.rank(bench.variant(spec.graph), method, options, bench.calibration, Path(folder))
        keeps = [(), *(tuple(sorted(keep)) for keep in sensitivity.groups(damages))]
        prices = _prices([replace(spec, keep=keep) for keep in keeps], bench, package)
        return Explanation(replace(spec, keep=()).name, len(package.asked.texts), damages, prices)


def _prices(specs: list[Spec], bench: Bench, package: Carried) -> list[Price]:
    opened = {len(spec.keep): bench.open(spec) for spec in specs}
    name, text = next(iter(bench.work.singles.items()))
    engines = {str(kept): predictor.engine for kept, predictor in opened.items()}
    timed = timing.latencies(engines, replace(bench.work, singles={name: text}), SECONDS)
    return [
        Price(
            kept=len(spec.keep),
            bytes=bench.file(spec).stat().st_size,
            changed=golden.changed(
                opened[len(spec.keep)].predict(package.asked.texts, package.asked.pairs), package.exact
            ),
            latency=timed[str(len(spec.keep))][name],
        )
        for spec in specs
    ]


def damage_rows(found: Explanation) -> list[tuple[str, ...]]:
    """Returns a row a product for a table: its name, the share of the logits' variance that is lost, and decibels."""
    return [(one.node, f"{one.error:.2e}", f"{one.decibels:.1f} dB") for one in found.damages]


def price_rows(found: Explanation) -> list[tuple[str, ...]]:
    """Returns a row a graph for a table; the first has all products quantized."""
    return [
        (
            f"the worst {one.kept}" if one.kept else "none",
            f"{one.bytes:,}",
            f"{one.changed} of {found.texts}",
            f"{one.latency.p50:.2f} ms ({one.latency.low:.2f} to {one.latency.high:.2f})",
        )
        for one in found.prices
    ]
