"""Width pruning to measured speedups: what it costs in quality, one-shot and distilled.

Each row is a run of the recipe up to pruning; one that is finished is not made again, and one that was killed goes
on. The speedup of the table is measured once more after the choice, on graphs exported and quantized afresh, in
turn with the whole model; drops are paired, row by row, against the trained model.

    python benchmarks/pruning/width_speedups.py recipe.yaml --output runs/speedups --speedups 1.25 1.5 2 3 --epochs 1
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from deploykit import data, hardware, pipeline, recipe, tasks
from deploykit.artifact import Artifact
from deploykit.artifact.execution import Execution
from deploykit.errors import ModelError
from deploykit.evaluation import scoring
from deploykit.evaluation.comparison import compare
from deploykit.modeling import checkpoint
from deploykit.modeling.problem import Problem
from deploykit.pruners import width
from deploykit.pruners._width import meter
from deploykit.recipe import GateSection, Recipe
from deploykit.tokenizer import Tokenizer


def variant(base: Recipe, speedup: float, epochs: int) -> Recipe:
    """Returns the recipe with another speedup and recovery; no epochs: one-shot. Its other options of width stay."""
    found = base.prune if isinstance(base.prune, dict) and base.prune["method"] == "width" else {}
    own = {name: value for name, value in found.items() if name not in width.TARGET_OPTIONS}
    distill = {**(own.get("distill") or {}), "epochs": epochs} if epochs else None
    section = {**own, "method": "width", "speedup": speedup, "distill": distill}
    return base.model_copy(update={"prune": section, "gates": GateSection(max_drop=1)})


def measured_again(base: Recipe, trained: Artifact, pruned: Artifact) -> dict[str, float]:
    """Returns the speedup with its 95 % interval."""
    options = pruned.manifest.options
    task, tokenizer = tasks.load(base.task_name), Tokenizer.load(trained.path, trained.manifest.max_tokens)
    dataset = data.load(base.data, task, base.seed)
    problem = Problem.of(task, tasks.spec_of(trained.manifest), tokenizer, dataset.train, (), base.seed)
    execution = Execution(engine=options["engine"], precision=options["precision"], threads=hardware.cpu_limit())
    whole, small = (checkpoint.load(found.path, attention=None) for found in (trained, pruned))
    with tempfile.TemporaryDirectory() as work:
        settings = problem, execution, options["quantizer"], Path(work), options["objective"]
        share = meter.relative_timer(whole, *settings)(small)
    return {"value": 1 / share.value, "low": 1 / share.high, "high": 1 / share.low}


def row(base: Recipe, speedup: float, epochs: int) -> dict[str, Any]:
    """Runs one variant and returns its figures."""
    trained, pruned = (outcome.artifact for outcome in pipeline.run(variant(base, speedup, epochs), until="prune"))
    task, spec = tasks.load(base.task_name), tasks.spec_of(trained.manifest)
    dataset = data.load(base.data, task, base.seed)
    before, after = (scoring.load_stored(artifact, task) for artifact in (trained, pruned))
    drops = {
        split: compare(task, spec, getattr(dataset, split), before[split], after[split], base.seed).drop.model_dump()
        for split in scoring.EVALUATED_SPLITS
    }
    step = pruned.manifest.history[-1]
    return {
        **pruned.manifest.own_details["steps"][0]["speedup"],
        "again": measured_again(base, trained, pruned),
        "metric": task.METRICS[0],
        "test": step.metrics["test"][task.METRICS[0]].model_dump(),
        "drops": drops,
        "parameters": step.parameters,
        "seconds": step.seconds,
        "layers": pruned.manifest.own_details["steps"][0]["layers"],
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the figures in Markdown, with 95 % intervals."""
    names = ("wanted", "way", "predicted", "measured", "test", "drop, test", "drop, validation", "parameters")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for found in results.values():
        start = f"| {found['wanted']:g} | {found['way']} "
        if "error" in found:
            lines.append(f"{start}| {found['error']} | | | | | |")
            continue
        cells = [f"{found['predicted']:.2f}", interval(found["again"], 2), interval(found["test"], 4)]
        cells += [interval(found["drops"][split], 4) for split in ("test", "validation")]
        lines.append(f"{start}| {' | '.join(cells)} | {found['parameters']:,} |")
    return "\n".join(lines) + "\n"


def interval(found: dict[str, float], digits: int) -> str:
    """Returns a value with its interval."""
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def main() -> None:
    """Makes the rows that are missing, and writes the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/width-speedups"))
    parser.add_argument("--speedups", type=float, nargs="+", default=[1.25, 1.5, 2.0, 3.0])
    parser.add_argument("--epochs", type=int, default=1, help="of the recovery of the distilled rows")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the recipe")
    arguments = parser.parse_args()

    base = recipe.load(arguments.recipe, [*arguments.set, f"output={arguments.output.resolve()}"])
    target = arguments.output / "speedups.json"
    content = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {"rows": {}}
    for speedup in arguments.speedups:
        for epochs in (0, arguments.epochs):
            key = pipeline.plan(variant(base, speedup, epochs), until="prune")[-1].key
            if key in content["rows"]:
                continue
            found: dict[str, Any] = {"wanted": speedup, "way": f"distilled, epochs: {epochs}" if epochs else "one-shot"}
            try:
                found |= row(base, speedup, epochs)
            except ModelError as error:  # out of reach
                found["error"] = str(error)
            content = {"machine": hardware.describe(), "rows": {**content["rows"], key: found}}
            target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            target.with_suffix(".md").write_text(table(content["rows"]), encoding="utf-8")
    print(table(content["rows"]))


if __name__ == "__main__":
    main()
