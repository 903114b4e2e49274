"""What a service does with three times the load that it can carry: who is refused, and what the others wait.

The server runs on core 0 and the client on core 1. First it is asked at 90 % of its capacity (what the same engine
does in process with the same texts), then at three times of it for minutes, then little, to see when it is well again.

    python benchmarks/serving/overload.py runs/movie-reviews/package --texts demo/test.jsonl --output FILE
"""

import argparse
import json
import re
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import load
from batching import in_process, on_core, run, variant

from deploykit import hardware
from deploykit.serving import launch
from deploykit.serving.access import keys

BEFORE_S, AFTER_S = 60.0, 15.0
AFTER = 0.2  # of the capacity
EVERY_S = 5.0  # between two looks at the memory


class Memory(threading.Thread):
    """Notes the resident bytes of the service, from its metrics, every few seconds until the block ends."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(daemon=True)
        self._url, self._key, self._ended = url, key, threading.Event()
        self.found: list[float] = []

    def __enter__(self) -> "Memory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Looks until told to end."""
        while not self._ended.wait(EVERY_S):
            self.found.append(resident(self._url, self._key))


def resident(url: str, key: str) -> float:
    """Returns the resident bytes of the service's process."""
    asked = urllib.request.Request(f"{url}/metrics", headers={"x-api-key": key})
    with launch.DIRECT_OPENER.open(asked, timeout=30) as response:
        found = re.search(r"^deploykit_process_resident_bytes (\S+)$", response.read().decode(), re.MULTILINE)
    if found is None:
        raise SystemExit("the service does not say how much memory it takes")
    return float(found[1])


def recovery(outcome: load.Outcome, normal_ms: float) -> float:
    """Returns the seconds after the load until the last request that was refused or slow."""
    bad = [due for due, latency in outcome.timeline if latency is None or latency > normal_ms]
    return max(bad, default=0.0)


def measure(url: str, key: str, texts: list[str], capacity: float, minutes: float, times: float) -> dict[str, Any]:
    """Returns the figures of the three phases."""
    traces = [load.record(texts, long_share=load.LONG_SHARE, count=400_000, seed=seed) for seed in range(3)]
    run(load.replay(url, key, traces[0], 0.5 * capacity, 10.0))  # caches, and the cost of batches
    before = run(load.replay(url, key, traces[0], 0.9 * capacity, BEFORE_S))
    start = resident(url, key)
    with Memory(url, key) as memory:
        during = run(load.replay(url, key, traces[1], times * capacity, 60 * minutes))
    after = run(load.replay(url, key, traces[2], AFTER * capacity, AFTER_S))
    time.sleep(1)
    normal = before.figures()["p99_ms"]
    return {
        "before": before.figures(),
        "during": {**during.figures(), "statuses": during.statuses, "p99_ratio": during.figures()["p99_ms"] / normal},
        "after": {**after.figures(), "recovered_s": recovery(after, normal)},
        "memory": {"start": start, "most": max(memory.found), "end": resident(url, key)},
    }


def main() -> None:
    """Measures and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines with a column `text`")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--times", type=float, default=3.0, help="the capacity")
    parser.add_argument("--max-wait-s", type=float, help="default: as the package says")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    texts = load.texts_of(arguments.texts)
    trace = load.record(texts, long_share=load.LONG_SHARE, count=1000, seed=0)
    capacity = in_process(arguments.package, trace)(10)
    print(f"{capacity:.0f} texts a second in process", flush=True)
    changes = {"max_wait_s": arguments.max_wait_s} if arguments.max_wait_s else {}
    with tempfile.TemporaryDirectory() as folder:
        package = variant(arguments.package, Path(folder) / "package", **changes)
        file = Path(folder) / "keys.json"
        key = keys.add(file, "load", scopes=["predict", "metrics"])
        with on_core(0), launch.running_service(package.path, file, log=Path(folder) / "log") as url, on_core(1):
            found = measure(url, key, texts, capacity, arguments.minutes, arguments.times)
        tracebacks = (Path(folder) / "log").read_text().count("Traceback")
    content = {
        "machine": hardware.describe(),
        "capacity": capacity,
        "max_wait_s": package.manifest.serve.max_wait_s,
        "tracebacks": tracebacks,
        **found,
    }
    arguments.output.write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps({name: content[name] for name in ("before", "during", "after", "memory", "tracebacks")}, indent=2))


if __name__ == "__main__":
    main()
