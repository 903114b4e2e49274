"""The summary table of a chain of stages: what the command line, the report and the demo print."""

from collections.abc import Mapping, Sequence

from deploykit.artifact import Step


def header(steps: Sequence[Step]) -> tuple[str, ...]:
    """Returns the titles of `rows`; the metric is the task's first."""
    return ("stage", "seconds", "parameters", "bytes", f"test {next(iter(steps[0].metrics['test']))}", "p50, batch 1")


def rows(steps: Sequence[Step], seconds: Mapping[str, str] | None = None) -> list[tuple[str, ...]]:
    """Returns a row a stage; its time says so where the machine was busy.

    Args:
        steps: of a manifest's history.
        seconds: stage to what is shown instead of the seconds that it took, for stages that were skipped.
    """
    found: list[tuple[str, ...]] = []
    for step in steps:
        metric = next(iter(step.metrics["test"].values()))
        name = step.stage if step.method == step.stage else f"{step.stage} ({step.method})"
        shown = (seconds or {}).get(step.stage, f"{step.seconds:.0f}")
        numbers = (
            f"{step.parameters:,}",
            f"{step.bytes:,}",
            f"{metric.value:.4f}",
            f"{step.p50_ms:.1f} ms{', busy' if step.busy else ''}",
        )
        found.append((name, shown, *numbers))
    return found
