"""Whether a choice holds: is what was ranked first still near the best when everything is measured again?

Each repeat searches from nothing (an empty cache), then times all that came near the best once more, and compares the
choice with the best of that. A package says which candidates passed the gates where it was made.

    python benchmarks/engines/repeat_choices.py runs/reviews/package --repeats 10 --output benchmarks/repeats.json
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from deploykit import hardware
from deploykit.evaluation import timing
from deploykit.quantizers import auto
from deploykit.selection import choice, measurements, search
from deploykit.stages import retuning
from deploykit.stages.opened_package import Package, open_package

NEAR = 0.05  # a choice that is this much slower than the best still holds
SECONDS = 30.0  # for each fresh measurement


def repeat(package: Package, options: auto.Options, folder: Path) -> dict[str, Any]:
    """Searches, measures again and returns how far the choice is from the best."""
    os.environ[measurements.FOLDER_VARIABLE] = str(folder / "cache")
    cores = hardware.cpu_limit()
    known = retuning.passed_before(package, options, cores)
    bench = retuning.make_bench(package, folder / "graphs", options, known)
    entries, candidates = search.search(retuning.initial_specs(package, known, options), bench, options)
    finalists = [entry for entry in entries if entry.latency]
    opened = {entry.spec.name: bench.open(entry.spec).engine for entry in finalists}
    if options.objective == "throughput":
        rates = timing.throughputs(opened, bench.workload, search.BATCH_TOKENS, SECONDS)
        fresh = {name: 1 / max(rate.value for rate in found.values()) for name, found in rates.items()}
    else:
        times = timing.latencies(opened, bench.workload, SECONDS)
        fresh = {
            name: float(np.exp(np.mean([np.log(one.p50) for one in found.values()]))) for name, found in times.items()
        }
    (chosen,) = (found.name for found in candidates if found.kept)
    best = min(fresh, key=lambda name: fresh[name])
    ranked = sorted(
        (found for found in candidates if found.latency), key=lambda found: choice.cost(found, options.objective)
    )
    return {
        "chosen": chosen,
        "best": best,
        "ratio": fresh[chosen] / fresh[best],
        "ranking": [found.name for found in ranked],
        "fresh": fresh,
    }


def main() -> None:
    """Repeats the choice and counts how often it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--objective", default="latency")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    options = retuning.parse_options(objective=arguments.objective, minutes=arguments.minutes, fallback=False)
    package, found = open_package(arguments.package), []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            found.append(repeat(package, options, Path(folder)))
        print(f"{found[-1]['ratio']:.3f}  {found[-1]['chosen']}  (best: {found[-1]['best']})", flush=True)
    holds = sum(one["ratio"] <= 1 + NEAR for one in found)
    content = {"machine": hardware.describe(), "objective": arguments.objective, "holds": holds, "repeats": found}
    arguments.output.write_text(json.dumps(content, indent=2) + "\n")
    print(f"the choice was within {NEAR:.0%} of the best in {holds} of {len(found)} repeats")


if __name__ == "__main__":
    main()
