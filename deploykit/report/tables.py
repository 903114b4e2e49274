"""The summary table of the stages of a run, for the command line, the report and the demo."""

from collections.abc import Mapping, Sequence

from deploykit.artifact import Step


def header(steps: Sequence[Step]) -> tuple[str, ...]:
    """Returns the column titles for `rows`; the metric is the task's first."""
    return ("stage", "seconds", "parameters", "bytes", f"test {next(iter(steps[0].metrics['test']))}", "p50, batch 1")


def rows(steps: Sequence[Step], seconds: Mapping[str, str] | None = None) -> list[tuple[str, ...]]:
    """Returns one table row per stage; times that were measured on a busy machine say so.

    Args:
        steps: the history of a manifest.
        seconds: by stage, a text that is shown instead of its seconds.
    """
    table: list[tuple[str, ...]] = []
    for step in steps:
        metric = next(iter(step.metrics["test"].values()))
        name = step.stage if step.method == step.stage else f"{step.stage} ({step.method})"
        duration = (seconds or {}).get(step.stage, f"{step.seconds:.0f}")
        time = f"{step.p50_ms:.1f} ms{', busy' if step.is_busy else ''}"
        table.append((name, duration, f"{step.parameters:,}", f"{step.bytes:,}", f"{metric.value:.4f}", time))
    return table
