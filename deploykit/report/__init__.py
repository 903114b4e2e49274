"""The report of a run, from manifests alone: `report.html`, one self-contained file, and `report.md`.

Both are rendered from the same facts by Jinja; the figures are SVG drawn by matplotlib. Nothing here is
measured: what a report says, a manifest holds.
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


def write(folder: Path, artifacts: Sequence[Artifact], promised: GateSection) -> Path:
    """Writes both forms of the report.

    Args:
        folder: of the run.
        artifacts: the stages so far, in order, at least one.
        promised: the gates of the recipe.

    Returns:
        The path of `report.html`.
    """
    content = facts(artifacts, promised)
    with storage_errors(folder):
        for name in FILES:
            text = _environment(html=name.endswith(".html")).get_template(name).render(content)
            atomic.write_text(folder / name, text)
    return folder / FILES[0]


def facts(artifacts: Sequence[Artifact], promised: GateSection) -> dict[str, Any]:
    """Gathers what the templates show."""
    run = artifacts[-1].manifest
    details, metric = run.details, next(iter(run.step.metrics["test"]))
    judged = "package" if "package" in details else "train"
    candidates = _flat(details.get("quantize", {}).get("candidates", []), promised)
    compared = list(_compared(details, candidates))
    return {
        "run": run,
        "paths": {artifact.manifest.stage: artifact.path for artifact in artifacts},
        "metric": metric,
        "steps": run.history,
        "timed": _timed(run.step),
        "data": details["train"]["data"],
        "lengths": details["train"]["lengths"],
        "curves": {
            stage: [point for point in found["curve"] if point["split"] == "validation"]
            for stage, found in details.items()
            if found.get("curve")
        },
        "table": details[judged]["test"],
        "judged": judged,
        "candidates": candidates,
        "batches": list(dict.fromkeys(batch for found in candidates for batch in found["latency"])),
        "pruned": [(step["method"], _what_went(step), step.get("layers", ())) for step in _pruning(details)],
        "parity": details.get("export", {}),
        "compared": compared,
        "drops": list(_drops(compared, metric)),
        "verdicts": list(_verdicts(details, candidates, promised)),
        "flips": next((found["flips"] for found in reversed(details.values()) if "flips" in found), []),
        "figures": _figures(details["train"], candidates, metric),
    }


def _timed(step: Step) -> str:
    """Says how the times of the stages were measured, and how far they can be trusted."""
    how = f"The times of one text were measured in turn, at the stage {step.stage}"
    if not step.busy:
        return f"{how}."
    return (
        f"{how}, while other processes held the cores for {step.waited_share:.0%} of the time: measure again on a quiet"
        " machine before you rely on them."
    )


def _pruning(details: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Returns the steps of pruning."""
    found: Sequence[Mapping[str, Any]] = details.get("prune", {}).get("steps", ())
    return found


def _what_went(step: Mapping[str, Any]) -> str:
    """Says what a step of pruning took away, or what it was to reach."""
    if speedup := step.get("speedup"):
        found = speedup["measured"]
        return (
            f"{found['value']:.2f} times as fast as before (95 % interval {found['low']:.2f} to {found['high']:.2f});"
            f" wanted {speedup['wanted']:.2f}, predicted {speedup['predicted']:.2f}"
        )
    if "gone" in step:
        return f"removed layers: {', '.join(map(str, sorted(step['gone']))) or 'none'}"
    if "tokens" in step:
        return (
            f"{step['tokens']:,} of {step['tokens_before']:,} tokens stay, {step['bytes_saved']:,} bytes less; of the"
            f" validation texts {step['validation_unchanged']:.1%} are tokenized as before"
        )
    return "a share of all heads and neurons stays"


def _compared(
    details: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields what changed, against what, and the comparison, in the order of the stages."""
    for stage, found in details.items():
        if "comparison" in found:
            yield stage, "the trained model", found["comparison"]
        for one in candidates if stage == "quantize" else ():
            if one["kept"] and one["comparison"]:
                yield f"quantize: {one['name']}", "the float graph", one["comparison"]


def _drops(
    compared: Sequence[tuple[str, str, Mapping[str, Any]]], metric: str
) -> Iterator[tuple[str, str, str, list[tuple[str, Any]]]]:
    """Yields who pays for the latest change: stage, by what, the loss of what, the members; labels worst first."""
    for stage, _, found in compared[-1:]:
        labels = sorted(found["by_label"].items(), key=lambda member: -member[1]["value"])
        yield stage, "label", "recall", labels
        if found["by_length"]:
            yield stage, "length", metric, list(found["by_length"].items())


def _flat(candidates: Sequence[Mapping[str, Any]], promised: GateSection) -> list[dict[str, Any]]:
    """Returns the candidates from the fastest to the slowest, with a number each and the gates that stop it."""
    optional = {"throughput": None, "comparison": None, "metric": None, "verdicts": ()}
    found = [{**optional, **one.get("execution", {}), **one} for one in candidates]
    found.sort(key=_p50)
    for number, one in enumerate(found, start=1):
        verdicts = [Verdict.model_validate(verdict) for verdict in one["verdicts"]]
        arithmetic = one.get("execution", {}).get("precision", "float32")  # of what the graph leaves in float
        where = f"{one['precision']} on {one['engine']}" + (f" {arithmetic}" if arithmetic != "float32" else "")
        one |= {"number": number, "verdicts": verdicts, "stops": gates.stopping(promised, verdicts), "where": where}
    return found


def _p50(candidate: Mapping[str, Any]) -> float:
    """Returns the milliseconds of one text of median length: the first of the batches that were timed."""
    return float(next((latency["p50"] for latency in candidate["latency"].values()), np.inf))


def _verdicts(
    details: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], promised: GateSection
) -> Iterator[tuple[str, Verdict, bool]]:
    """Yields who was judged, the verdict, and whether it stops; of candidates that were not kept only what stops."""
    for stage, found in details.items():
        tried = candidates if stage == "quantize" else ()
        for verdict in () if tried else gates.recorded(promised, found):
            yield stage, verdict, bool(gates.stopping(promised, [verdict]))
        for one in tried:
            for verdict in one["verdicts"] if one["kept"] else one["stops"]:
                yield f"quantize: {one['name']}", verdict, verdict in one["stops"]


def _environment(*, html: bool) -> jinja2.Environment:
    loader = jinja2.FunctionLoader(
        lambda name: (resources.files("deploykit") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(
        loader=loader,
        autoescape=html,  # noqa: S701  the other form is Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    environment.globals.update(rows=rows, header=header)
    return environment


def _figures(trained: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Markup]:
    found = {"lengths": _draw(_lengths, trained["lengths"])}
    if trained["curve"]:
        found["curve"] = _draw(_curve, trained["curve"], metric)
    if candidates:
        found["candidates"] = _draw(_candidates, candidates, metric, size=(10.0, 4.2))
    return found


def _draw(draw: Any, *content: Any, size: tuple[float, float] = (6.4, 3.0)) -> Markup:
    """Returns a figure of this size, in inches, as an SVG element that can stand in a page."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(), *content)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(stream.getvalue()[stream.getvalue().index("<svg") :])  # noqa: S704  drawn here, labels escaped


def _lengths(axes: Axes, lengths: Mapping[str, Any]) -> None:
    histogram = lengths["train"]["histogram"]
    axes.stairs(histogram["counts"], histogram["edges"], fill=True, color=BLUE, alpha=0.85)
    axes.axvline(lengths["train"]["p95"], color=ORANGE, linewidth=1)
    axes.annotate("95 %", (lengths["train"]["p95"], max(histogram["counts"])), color=ORANGE)
    axes.set(xlabel="tokens", ylabel="training texts")


def _curve(axes: Axes, curve: Sequence[Mapping[str, Any]], metric: str) -> None:
    learned = [point for point in curve if point["split"] == "train"]
    judged = [point for point in curve if point["split"] == "validation"]
    axes.plot([point["epoch"] for point in learned], [point["loss"] for point in learned], color=BLUE)
    axes.set(xlabel="epoch")
    axes.set_ylabel("training loss", color=BLUE)
    other = axes.twinx()
    other.plot([point["epoch"] for point in judged], [point[metric] for point in judged], color=ORANGE, marker="o")
    other.set_ylabel(f"validation {metric.replace('_', ' ')}", color=ORANGE)
    other.grid(visible=False)


def _candidates(axes: Axes, candidates: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Draws those that were evaluated: hollow where a gate stops one, and the front of those that none stops."""
    drawn = [found for found in candidates if found["metric"] and found["latency"]]
    front: list[tuple[float, float]] = []
    for found in drawn:  # from the fastest
        point = _p50(found), found["metric"]["value"]
        if not found["stops"] and (not front or point[1] > front[-1][1]):
            front.append(point)
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=BLUE, linewidth=1, alpha=0.6)
    for found in drawn:
        value, color = found["metric"], ORANGE if found["kept"] else BLUE
        error = [[value["value"] - value["low"]], [value["high"] - value["value"]]]
        face = "none" if found["stops"] else color
        axes.errorbar(_p50(found), value["value"], yerr=error, fmt="o", color=color, mfc=face, elinewidth=0.5)
        axes.annotate(str(found["number"]), (_p50(found), value["value"]), (4, 3), textcoords="offset points")
    axes.set(xlabel="p50 in ms, batch 1, median length", ylabel=f"validation {metric.replace('_', ' ')}")
    axes.set_xlim(0, 1.08 * max(map(_p50, drawn), default=1))
