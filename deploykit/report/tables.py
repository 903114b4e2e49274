"""The table that sums up the stages of a run, for the command line, the report and the demo."""

from collections.abc import Mapping, Sequence

from deploykit.artifact import Step


def header(steps: Sequence[Step]) -> tuple[str, ...]:
    """Returns the column titles of `rows`; the metric in it is the task's first."""
    return ("stage", "seconds", "parameters", "bytes", f"test {next(iter(steps[0].metrics['test']))}", "p50, batch 1")


def rows(steps: Sequence[Step], seconds: Mapping[str, str] | None = None) -> list[tuple[str, ...]]:
    """Returns one table row per stage. The latency says so if it was measured on a busy machine.

    Args:
        steps: the history of a manifest.
        seconds: texts to show in the column `seconds` instead of the stage's duration, by stage.
    """
    table: list[tuple[str, ...]] = []
    for step in steps:
        metric = next(iter(step.metrics["test"].values()))
        name = step.stage if step.method == step.stage else f"{step.stage} ({step.method})"
        duration = (seconds or {}).get(step.stage, f"{step.seconds:.0f}")
        latency = f"{step.p50_ms:.1f} ms{', busy' if step.is_busy else ''}"
        table.append((name, duration, f"{step.parameters:,}", f"{step.bytes:,}", f"{metric.value:.4f}", latency))
    return table
