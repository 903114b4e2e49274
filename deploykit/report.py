"""The report of a run, from manifests alone: `report.html`, one self-contained file, and `report.md`.

Both are rendered from the same facts by Jinja; the figures are SVG drawn by matplotlib. Nothing here is
measured: what a report says, a manifest holds.
"""

import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deploykit.artifact import Artifact
from deploykit.errors import storage_errors
from deploykit.summary import header, rows

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


def write(folder: Path, artifacts: Sequence[Artifact]) -> Path:
    """Writes both forms of the report.

    Args:
        folder: of the run.
        artifacts: the stages so far, in order, at least one.

    Returns:
        The path of `report.html`.
    """
    content = facts(artifacts)
    with storage_errors(folder):
        for name in FILES:
            text = _environment(html=name.endswith(".html")).get_template(name).render(content)
            (folder / name).write_text(text, encoding="utf-8")
    return folder / FILES[0]


def facts(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """Gathers what the templates show."""
    run = artifacts[-1].manifest
    details, metric = run.details, next(iter(run.step.metrics["test"]))
    judged = "package" if "package" in details else "train"
    candidates = details.get("quantize", {}).get("candidates", [])
    return {
        "run": run,
        "paths": {artifact.manifest.stage: artifact.path for artifact in artifacts},
        "metric": metric,
        "steps": run.history,
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
        "parity": details.get("export", {}),
        "compared": {stage: found["comparison"] for stage, found in details.items() if "comparison" in found},
        "flips": next((found["flips"] for found in reversed(details.values()) if "flips" in found), []),
        "figures": _figures(details["train"], candidates, metric),
    }


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
        found["candidates"] = _draw(_candidates, candidates, metric)
    return found


def _draw(draw: Any, *content: Any) -> Markup:
    """Returns a figure as an SVG element that can stand in a page."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
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
    for found in candidates:
        latency = _typical(found["latency"])
        value = found["metric"]
        error = [[value["value"] - value["low"]], [value["high"] - value["value"]]]
        color = ORANGE if found["kept"] else GREY
        name = found["name"] + (" (kept)" if found["kept"] else "")
        axes.errorbar(latency["p50"], value["value"], yerr=error, fmt="o", color=color, capsize=3, label=name)
    axes.legend(frameon=False)
    axes.set(xlabel="p50 in ms, batch 1, median length", ylabel=f"validation {metric.replace('_', ' ')}")
    axes.set_xlim(left=0)
    axes.margins(x=0.25)


def _typical(latency: Mapping[str, Any]) -> Mapping[str, float]:
    """Returns the latency of one text of median length: the first of the batches that were timed."""
    found: Mapping[str, float] = next(iter(latency.values()))
    return found
