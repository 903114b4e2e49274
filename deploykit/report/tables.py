"""The summary table of the stages of a run, as the command line, the report and the demo print it."""

from collections.abc import Mapping, Sequence

from deploykit.artifact import Step


def header(steps: Sequence[Step]) -> tuple[str, ...]:
    """Returns the column titles for `rows`; the metric is the task's first."""
    return ("stage", "seconds", "parameters", "bytes", f"test {next(iter(steps[0].metrics['test']))}", "p50, batch 1")


def rows(steps: Sequence[Step], seconds: Mapping[str, str] | None = None) -> list[tuple[str, ...]]:
    """Returns one table row per stage; the time of a stage says so where the machine was busy.

    Args:
        steps: the history of a manifest.
        seconds: maps a stage to a text shown instead of its seconds, for stages that were skipped.
    """
    table: list[tuple[str, ...]] = []
    for step in steps:
        metric = next(iter(step.metrics["test"].values()))
        name = step.stage if step.method == step.stage else f"{step.stage} ({step.method})"
        duration = (seconds or {}).get(step.stage, f"{step.seconds:.0f}")
        time = f"{step.p50_ms:.1f} ms{', busy' if step.busy else ''}"
        table.append((name, duration, f"{step.parameters:,}", f"{step.bytes:,}", f"{metric.value:.4f}", time))
    return table
