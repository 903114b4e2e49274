"""The report of a run, `report.html` and `report.md`, from the facts in the manifests.

Jinja renders both, and matplotlib draws the figures as SVG inside the HTML file.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deploykit.artifact import Artifact, Step, atomic
from deploykit.errors import storage_errors
from deploykit.evaluation import gates
from deploykit.evaluation.gates import Verdict
from deploykit.recipe import GateSection
from deploykit.report.tables import header, rows

FILES = ("report.html", "report.md")
BLUE, ORANGE, GREY = "#2563a8", "#c2571a", "#5f6b7a"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "deploykit",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def write(folder: Path, artifacts: Sequence[Artifact], limits: GateSection) -> Path:
    """Writes both files of the report.

    Args:
        folder: of the run.
        artifacts: of the finished stages in order, at least one.
        limits: the gates of the recipe.

    Returns:
        The path of `report.html`.
    """
    content = facts(artifacts, limits)
    with storage_errors(folder):
        for name in FILES:
            text = _environment(html=name.endswith(".html")).get_template(name).render(content)
            atomic.write_text(folder / name, text)
    return folder / FILES[0]


def facts(artifacts: Sequence[Artifact], limits: GateSection) -> dict[str, Any]:
    """Collects the values that the templates show."""
    run = artifacts[-1].manifest
    details, metric = run.details, next(iter(run.step.metrics["test"]))
    judged = "package" if "package" in details else "train"
    candidates = _ranked(details.get("quantize", {}).get("candidates", []), limits)
    compared = list(_comparisons(details, candidates))
    pruning = details.get("prune", {}).get("steps", ())
    return {
        "run": run,
        "paths": {artifact.manifest.stage: artifact.path for artifact in artifacts},
        "metric": metric,
        "steps": run.history,
        "timed": _timed(run.step),
        "data": details["train"]["data"],
        "lengths": details["train"]["lengths"],
        "curves": {
            stage: [point for point in detail["curve"] if point["split"] == "validation"]
            for stage, detail in details.items()
            if detail.get("curve")
        },
        "table": details[judged]["test"],
        "judged": judged,
        "answering": list(_answering(details)),
        "candidates": candidates,
        "batches": list(dict.fromkeys(batch for candidate in candidates for batch in candidate["latency"])),
        "pruned": [(step["method"], _pruning_result(step), step.get("layers", ())) for step in pruning],
        "parity": details.get("export", {}),
        "compared": compared,
        "drops": list(_drops(compared, metric)),
        "verdicts": list(_verdicts(details, candidates, limits)),
        "flips": next((detail["flips"] for detail in reversed(details.values()) if "flips" in detail), []),
        "figures": _figures(details["train"], candidates, metric),
    }


def _timed(step: Step) -> str:
    """Describes how the times of the stages were measured, and whether they can be trusted."""
    busy = (
        f", while other processes used the cores for {step.waited_share:.0%} of the time: measure again on a quiet"
        " machine before you rely on them"
    )
    return f"The times of one text were measured in turn, at the stage {step.stage}{busy if step.busy else ''}."


def _answering(details: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the models that abstain, each with its coverage and accuracy on the test split."""
    for stage, model in (("train", "as trained"), ("package", "as packaged")):
        chosen = details.get(stage, {}).get("test", {}).get("abstention", {}).get("chosen")
        if chosen:
            yield model, chosen


def _pruning_result(step: Mapping[str, Any]) -> str:
    """Describes in words the result of a pruning step."""
    if speedup := step.get("speedup"):
        measured = speedup["measured"]
        return (
            f"{measured['value']:.2f} times as fast as before (95 % interval {measured['low']:.2f} to"
            f" {measured['high']:.2f}); wanted {speedup['wanted']:.2f}, predicted {speedup['predicted']:.2f}"
        )
    if "gone" in step:
        return f"removed layers: {', '.join(map(str, sorted(step['gone']))) or 'none'}"
    if "tokens" in step:
        return (
            f"kept {step['tokens']:,} of {step['tokens_before']:,} tokens, which saves {step['bytes_saved']:,} bytes;"
            f" {step['validation_unchanged']:.1%} of the validation texts are tokenized as before"
        )
    return "kept a share of the heads and of the neurons of all layers"


def _comparisons(
    details: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields the names of the changed model and of the reference, and their comparison, in the order of the stages."""
    for stage, detail in details.items():
        if "comparison" in detail:
            yield stage, "the trained model", detail["comparison"]
        for candidate in candidates if stage == "quantize" else ():
            if candidate["kept"] and candidate["comparison"]:
                yield f"quantize: {candidate['name']}", "the float graph", candidate["comparison"]


def _drops(
    compared: Sequence[tuple[str, str, Mapping[str, Any]]], metric: str
) -> Iterator[tuple[str, str, str, list[tuple[str, Any]]]]:
    """Yields stage, grouping, metric and losses of the last comparison, by label (worst first) and by length."""
    for stage, _, comparison in compared[-1:]:
        labels = sorted(comparison["by_label"].items(), key=lambda member: -member[1]["value"])
        if labels:
            yield stage, "label", "recall", labels
        if comparison["by_length"]:
            yield stage, "length", metric, list(comparison["by_length"].items())


def _ranked(candidates: Sequence[Mapping[str, Any]], limits: GateSection) -> list[dict[str, Any]]:
    """Sorts the candidates from the fastest to the slowest, and adds their numbers and the gates that stop them."""
    optional = {"throughput": None, "comparison": None, "metric": None, "verdicts": ()}
    ranked = [{**optional, **candidate.get("execution", {}), **candidate} for candidate in candidates]
    ranked.sort(key=_p50)
    for number, candidate in enumerate(ranked, start=1):
        verdicts = [Verdict.model_validate(verdict) for verdict in candidate["verdicts"]]
        precision = candidate.get("execution", {}).get("precision", "float32")  # of the operators left in float
        suffix = "" if precision == "float32" else f" {precision}"
        where = f"{candidate['precision']} on {candidate['engine']}{suffix}"
        stops = gates.stopping_verdicts(limits, verdicts)
        candidate |= {"number": number, "verdicts": verdicts, "stops": stops, "where": where}
    return ranked


def _p50(candidate: Mapping[str, Any]) -> float:
    """Returns the median milliseconds for one text of median length, which is the first in `latency`."""
    return float(next((latency["p50"] for latency in candidate["latency"].values()), np.inf))


def _verdicts(
    details: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], limits: GateSection
) -> Iterator[tuple[str, Verdict, bool]]:
    """Yields stage, verdict, and whether it stops the run; for rejected candidates only the verdicts that stop them."""
    for stage, detail in details.items():
        measured = candidates if stage == "quantize" else ()
        for verdict in () if measured else gates.stored_verdicts(limits, detail):
            yield stage, verdict, bool(gates.stopping_verdicts(limits, [verdict]))
        for candidate in measured:
            for verdict in candidate["verdicts"] if candidate["kept"] else candidate["stops"]:
                yield f"quantize: {candidate['name']}", verdict, verdict in candidate["stops"]


def _environment(*, html: bool) -> jinja2.Environment:
    loader = jinja2.FunctionLoader(
        lambda name: (resources.files("deploykit.report") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(
        loader=loader,
        autoescape=html,  # noqa: S701  Markdown has its own escapes
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    environment.globals.update(rows=rows, header=header)
    return environment


def _figures(trained: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Markup]:
    figures = {"lengths": _draw(_lengths, trained["lengths"])}
    if trained["curve"]:
        figures["curve"] = _draw(_curve, trained["curve"], metric)
    if candidates:
        figures["candidates"] = _draw(_candidates, candidates, metric, size=(10.0, 4.2))
    return figures


def _draw(draw: Any, *content: Any, size: tuple[float, float] = (6.4, 3.0)) -> Markup:
    """Returns a figure as an SVG element for a page; `size` is in inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(), *content)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(stream.getvalue()[stream.getvalue().index("<svg") :])  # noqa: S704  matplotlib escapes all text


def _lengths(axes: Axes, lengths: Mapping[str, Any]) -> None:
    histogram = lengths["train"]["histogram"]
    axes.stairs(histogram["counts"], histogram["edges"], fill=True, color=BLUE, alpha=0.85)
    axes.axvline(lengths["train"]["p95"], color=ORANGE, linewidth=1)
    axes.annotate("p95", (lengths["train"]["p95"], max(histogram["counts"])), color=ORANGE)
    axes.set(xlabel="tokens", ylabel="training texts")


def _curve(axes: Axes, curve: Sequence[Mapping[str, Any]], metric: str) -> None:
    training = [(point["epoch"], point["loss"]) for point in curve if point["split"] == "train"]
    validation = [(point["epoch"], point[metric]) for point in curve if point["split"] == "validation"]
    axes.plot(*zip(*training, strict=True), color=BLUE)
    axes.set(xlabel="epoch")
    axes.set_ylabel("training loss", color=BLUE)
    right = axes.twinx()
    right.plot(*zip(*validation, strict=True), color=ORANGE, marker="o")
    right.set_ylabel(f"validation {metric.replace('_', ' ')}", color=ORANGE)
    right.grid(visible=False)


def _candidates(axes: Axes, candidates: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Draws the evaluated candidates, hollow if a gate stops them, and the Pareto front of those that pass."""
    evaluated = [candidate for candidate in candidates if candidate["metric"] and candidate["latency"]]
    front: list[tuple[float, float]] = []
    for candidate in evaluated:  # from the fastest to the slowest
        point = _p50(candidate), candidate["metric"]["value"]
        if not candidate["stops"] and (not front or point[1] > front[-1][1]):
            front.append(point)
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=BLUE, linewidth=1, alpha=0.6)
    for candidate in evaluated:
        p50, value, color = _p50(candidate), candidate["metric"], ORANGE if candidate["kept"] else BLUE
        error = [[value["value"] - value["low"]], [value["high"] - value["value"]]]
        face = "none" if candidate["stops"] else color
        axes.errorbar(p50, value["value"], yerr=error, fmt="o", color=color, mfc=face, elinewidth=0.5)
        axes.annotate(str(candidate["number"]), (p50, value["value"]), (4, 3), textcoords="offset points")
    axes.set(xlabel="p50 in ms, batch 1, median length", ylabel=f"validation {metric.replace('_', ' ')}")
    axes.set_xlim(0, 1.08 * max(map(_p50, evaluated), default=1))
