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
BLUE, ORANGE = "#2563a8", "#c2571a"  # colours of the figures
STYLE = {  # matplotlib settings of all figures; the salt makes the ids in an SVG the same in every run
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
    """Collects the values that the templates show, by the names that the templates use."""
    run = artifacts[-1].manifest
    details, metric = run.details, next(iter(run.step.metrics["test"]))
    tested_stage = "package" if "package" in details else "train"
    candidates = _rank_candidates(details.get("quantize", {}).get("candidates", []), limits)
    comparisons = list(_comparisons(details, candidates))
    pruning = details.get("prune", {}).get("steps", ())
    return {
        "run": run,
        "paths": {artifact.manifest.stage: artifact.path for artifact in artifacts},
        "metric": metric,
        "steps": run.history,
        "timing_note": _timing_note(run.step),
        "data": details["train"]["data"],
        "lengths": details["train"]["lengths"],
        "curves": {
            stage: [point for point in detail["curve"] if point["split"] == "validation"]
            for stage, detail in details.items()
            if detail.get("curve")
        },
        "test_tables": details[tested_stage]["test"],
        "tested_stage": tested_stage,
        "abstaining_models": list(_abstaining_models(details)),
        "candidates": candidates,
        "timed_texts": list(dict.fromkeys(text for candidate in candidates for text in candidate["latency"])),
        "pruning_steps": [(step["method"], _pruning_result(step), step.get("layers", ())) for step in pruning],
        "parity": details.get("export", {}),
        "comparisons": comparisons,
        "losses": list(_losses(comparisons, metric)),
        "verdicts": list(_verdicts(details, candidates, limits)),
        "flips": next((detail["flips"] for detail in reversed(details.values()) if "flips" in detail), []),
        "figures": _figures(details["train"], candidates, metric),
    }


def _timing_note(step: Step) -> str:
    """Says how the latencies of the stages' models were measured, with a warning if other processes disturbed that."""
    warning = (
        f", while other processes used the cores for {step.waited_share:.0%} of the time: measure again on a quiet"
        " machine before you rely on them"
    )
    return f"The times of one text were measured in turn, at the stage {step.stage}{warning if step.is_busy else ''}."


def _abstaining_models(details: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the models that abstain: what to call each, and its point of `abstention.measure` on the test split."""
    for stage, model in (("train", "as trained"), ("package", "as packaged")):
        chosen = details.get(stage, {}).get("test", {}).get("abstention", {}).get("chosen")
        if chosen:
            yield model, chosen


def _pruning_result(step: Mapping[str, Any]) -> str:
    """Describes the result of a pruning step, from its facts in the manifest."""
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
    """Yields stage, name of the reference, and comparison, in the order of the stages."""
    for stage, detail in details.items():
        if "comparison" in detail:
            yield stage, "the trained model", detail["comparison"]
        for candidate in candidates if stage == "quantize" else ():
            if candidate["kept"] and candidate["comparison"]:
                yield f"quantize: {candidate['name']}", "the float graph", candidate["comparison"]


def _losses(
    comparisons: Sequence[tuple[str, str, Mapping[str, Any]]], metric: str
) -> Iterator[tuple[str, str, str, list[tuple[str, Any]]]]:
    """Yields tables of the losses in the last comparison, by label (worst first) and by length.

    Each has the stage, what the rows are grouped by, the metric, and the loss of each group.
    """
    for stage, _, comparison in comparisons[-1:]:
        labels = sorted(comparison["by_label"].items(), key=lambda loss: -loss[1]["value"])
        if labels:
            yield stage, "label", "recall", labels
        if comparison["by_length"]:
            yield stage, "length", metric, list(comparison["by_length"].items())


def _rank_candidates(candidates: Sequence[Mapping[str, Any]], limits: GateSection) -> list[dict[str, Any]]:
    """Sorts the candidates from the fastest to the slowest, and adds what the templates show besides.

    Added are `number`, `runs_on` in words, the `verdicts` as objects, and the `stopping_verdicts`.
    """
    optional = {"throughput": None, "comparison": None, "metric": None, "verdicts": ()}
    ranked = [{**optional, **candidate.get("execution", {}), **candidate} for candidate in candidates]
    ranked.sort(key=_median_ms)
    for number, candidate in enumerate(ranked, start=1):
        verdicts = [Verdict.model_validate(verdict) for verdict in candidate["verdicts"]]
        precision = candidate.get("execution", {}).get("precision", "float32")  # of operators that are not quantized
        suffix = "" if precision == "float32" else f" {precision}"
        runs_on = f"{candidate['precision']} on {candidate['engine']}{suffix}"
        stopping = gates.stopping_verdicts(limits, verdicts)
        candidate |= {"number": number, "verdicts": verdicts, "stopping_verdicts": stopping, "runs_on": runs_on}
    return ranked


def _median_ms(candidate: Mapping[str, Any]) -> float:
    """Returns the median milliseconds for one text of median length, or infinity if the candidate was not timed.

    The text of median length is the first in `latency`.
    """
    return float(next((latency["p50"] for latency in candidate["latency"].values()), np.inf))


def _verdicts(
    details: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], limits: GateSection
) -> Iterator[tuple[str, Verdict, bool]]:
    """Yields stage, verdict, and whether the verdict stops the run.

    For the kept candidate these are all its verdicts, for other candidates those that stop them.
    """
    for stage, detail in details.items():
        stage_candidates = candidates if stage == "quantize" else ()
        for verdict in () if stage_candidates else gates.stored_verdicts(limits, detail):
            yield stage, verdict, bool(gates.stopping_verdicts(limits, [verdict]))
        for candidate in stage_candidates:
            for verdict in candidate["verdicts"] if candidate["kept"] else candidate["stopping_verdicts"]:
                yield f"quantize: {candidate['name']}", verdict, verdict in candidate["stopping_verdicts"]


def _environment(*, html: bool) -> jinja2.Environment:
    """Returns the Jinja environment for the HTML file or the Markdown file, with the filters and functions they use."""
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
    """Draws the figures of the report, by the names that the templates use; `trained` are the details of `train`."""
    figures = {"lengths": _svg(_draw_lengths, trained["lengths"])}
    if trained["curve"]:
        figures["curve"] = _svg(_draw_curve, trained["curve"], metric)
    if candidates:
        figures["candidates"] = _svg(_draw_candidates, candidates, metric, size=(10.0, 4.2))
    return figures


def _svg(draw: Any, *content: Any, size: tuple[float, float] = (6.4, 3.0)) -> Markup:
    """Draws a figure, and returns it as an SVG element.

    Args:
        draw: draws on axes, which it gets first.
        content: further arguments of `draw`.
        size: width and height in inches.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(), *content)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(stream.getvalue()[stream.getvalue().index("<svg") :])  # noqa: S704  matplotlib escapes all text


def _draw_lengths(axes: Axes, lengths: Mapping[str, Any]) -> None:
    """Draws a histogram of the lengths of the training texts, with a line at the 95 % quantile."""
    histogram = lengths["train"]["histogram"]
    axes.stairs(histogram["counts"], histogram["edges"], fill=True, color=BLUE, alpha=0.85)
    axes.axvline(lengths["train"]["p95"], color=ORANGE, linewidth=1)
    axes.annotate("p95", (lengths["train"]["p95"], max(histogram["counts"])), color=ORANGE)
    axes.set(xlabel="tokens", ylabel="training texts")


def _draw_curve(axes: Axes, curve: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Draws the training loss (left axis) and a validation metric (right axis) over the epochs."""
    training = [(point["epoch"], point["loss"]) for point in curve if point["split"] == "train"]
    validation = [(point["epoch"], point[metric]) for point in curve if point["split"] == "validation"]
    axes.plot(*zip(*training, strict=True), color=BLUE)
    axes.set(xlabel="epoch")
    axes.set_ylabel("training loss", color=BLUE)
    right = axes.twinx()
    right.plot(*zip(*validation, strict=True), color=ORANGE, marker="o")
    right.set_ylabel(f"validation {metric.replace('_', ' ')}", color=ORANGE)
    right.grid(visible=False)


def _draw_candidates(axes: Axes, candidates: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Draws the metric of the evaluated candidates over their latency, and the Pareto front of those that pass.

    Candidates that a gate stops are hollow, and the kept one is orange.
    """
    evaluated = [candidate for candidate in candidates if candidate["metric"] and candidate["latency"]]  # fastest first
    front: list[tuple[float, float]] = []
    for candidate in evaluated:
        point = _median_ms(candidate), candidate["metric"]["value"]
        if not candidate["stopping_verdicts"] and (not front or point[1] > front[-1][1]):
            front.append(point)
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=BLUE, linewidth=1, alpha=0.6)
    for candidate in evaluated:
        median_ms, measured = _median_ms(candidate), candidate["metric"]
        value, color = measured["value"], ORANGE if candidate["kept"] else BLUE
        error = [[value - measured["low"]], [measured["high"] - value]]
        face = "none" if candidate["stopping_verdicts"] else color
        axes.errorbar(median_ms, value, yerr=error, fmt="o", color=color, mfc=face, elinewidth=0.5)
        axes.annotate(str(candidate["number"]), (median_ms, value), (4, 3), textcoords="offset points")
    axes.set(xlabel="p50 in ms, batch 1, median length", ylabel=f"validation {metric.replace('_', ' ')}")
    axes.set_xlim(0, 1.08 * max(map(_median_ms, evaluated), default=1))
