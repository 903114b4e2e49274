"""How much load a service carries with our batching, with BentoML's, in order of arrival, and with none.

Servers run on core 0, all of them started, one asked at a time and in turn with all others; the client runs on core
1. Short texts are asked as they are; a mixed trace has one long text (600 to 1,800 characters) in ten. Capacity is
what the same engine does in this process with the same texts, sorted and batched as suits it best.

    python benchmarks/serving/batching.py runs/movie-reviews/package --texts demo/test.jsonl --output FILE
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load
import numpy as np
import uvloop

from deploykit import hardware
from deploykit.artifact import LIBRARY, MANIFEST, SERVICE, TOOL_FILES, Artifact, Manifest, draft, seal
from deploykit.evaluation import timing
from deploykit.inference.predictor import Predictor, group_by_length, pad_for_engine
from deploykit.serving import launch
from deploykit.serving.access import keys
from deploykit.stages import bundle
from deploykit.tasks import TextInput

BATCHERS = {"cost": "", "fifo": "make_fifo", "none": "", "bentoml": "make_bentoml"}  # functions of `baselines`
DOCUMENTED = "bentoml as documented"  # a plain service with a batchable method, as its documentation has it
LOADS = (0.3, 0.6, 0.9, 1.2)  # of the capacity
BUDGETS = (256, 512, 1024, 2048, 4096)
SAMPLE = 256  # texts in this process
GRID = 2 ** (1 / 4)  # between two rates that are tried
LIMITS = {"mixed": 250.0, "short": 100.0}  # milliseconds of p99
CLIENTS, WARM_S = 32, 1.0
LEAST_CLIENTS = 8  # where requests have many texts: more of those would be refused, and ask again at once
MIXES: dict[str, dict[str, Any]] = {
    "mixed": {"long_share": load.LONG_SHARE},
    "short": {"long_share": 0.0},
    "short, eight a request": {"long_share": 0.0, "items": 8},
}
PARTS = ("loads", "carried", "efficiency")
BASELINE = """
import sys
from pathlib import Path

sys.path.insert(0, %r)
import baselines

from deploykit.serving.service import build

service = build(Path(__file__).parent, baselines.%s)
"""
PLAIN = """
import bentoml
from deploykit.inference.predictor import Predictor
from deploykit.artifact import Artifact
from deploykit.tokenizer import Features

@bentoml.service(traffic={"timeout": 10})
class Plain:
    def __init__(self):
        self.predictor = Predictor.load(Artifact.load(%r), 1)

    @bentoml.api(batchable=True, route="/v1/predict")
    def predict(self, texts: list[str]) -> list[dict]:
        predictor = self.predictor
        encodings = predictor.tokenizer.encode(texts)
        outputs = predictor.run([Features(text, 0, encoding) for text, encoding in zip(texts, encodings)])
        return [{"label": predictor.spec.labels[int(found["logits"].argmax())]} for found in outputs]
"""


def variant(package: Path, target: Path, batcher: str = "", **changes: Any) -> Artifact:
    """Writes the same package with the code of this version, with other options of serving or another batcher."""
    artifact = Artifact.load(package)
    with draft(target) as folder:
        shutil.copytree(package, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, *TOOL_FILES))
        bundle.copy_library(folder / LIBRARY)
        if batcher:
            (folder / SERVICE).write_text(BASELINE % (str(Path(__file__).resolve().parent), batcher))
        manifest = artifact.manifest
        facts = {
            name: getattr(manifest, name) for name in Manifest.model_fields if name not in ("format_version", "files")
        }
        return seal(folder, target, **{**facts, "serve": manifest.serve.model_copy(update=changes)})


class Servers:
    """All servers, on core 0; `urls` has name to url, `key` opens them.

    One that keeps work of requests that nobody waits for any more is started anew, not to burden the next one.
    """

    def __init__(self, package: Path, folder: Path) -> None:
        self._package, self._folder, self._file = package, folder, folder / "keys.json"
        self.key = keys.add(self._file, "load", scopes=["predict", "metrics"])
        self._running = {name: contextlib.ExitStack() for name in (*BATCHERS, DOCUMENTED)}
        self.urls: dict[str, str] = {}

    def __enter__(self) -> "Servers":
        for name, batcher in BATCHERS.items():
            variant(self._package, self._folder / name, batcher, **({"max_batch_items": 1} if name == "none" else {}))
        for name in self._running:
            self.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        for stack in self._running.values():
            stack.close()

    def start(self, name: str) -> None:
        """Starts a server, after the one that runs has ended."""
        self._running[name].close()
        with on_core(0):
            if name == DOCUMENTED:
                server = documented(self._package, self._folder / "plain")
            else:
                server = launch.running_service(self._folder / name, self._file, log=self._folder / f"{name}.log")
            self.urls[name] = self._running[name].enter_context(server)


@contextlib.contextmanager
def documented(package: Path, folder: Path) -> Iterator[str]:
    """Runs a service as BentoML's documentation has it."""
    folder.mkdir(exist_ok=True)
    (folder / "service.py").write_text(PLAIN % str(package.resolve()))
    port, log = launch.free_port(), folder / "log"
    environ = {**os.environ, "BENTOML_HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-m", "bentoml", "serve", "service:Plain", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as stream:
        process = subprocess.Popen(argv, env=environ, cwd=folder, stdout=stream, stderr=stream, start_new_session=True)
    try:
        launch.wait_ready(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        launch.stop(process)


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keeps this thread, and what it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def in_process(package: Path, trace: load.Trace) -> Callable[[float], float]:
    """Returns what measures texts a second of the engine alone, on core 0, for about so many seconds."""
    texts = [text for body in trace.bodies[:SAMPLE] for text in json.loads(body)["texts"]][:SAMPLE]
    with on_core(0):
        predictor = Predictor.load(Artifact.load(package), 1)
    inputs = [TextInput(text=text) for text in texts]
    windows = [window for found in predictor.encode(inputs) for window in found]
    grouped = {
        budget: [
            pad_for_engine([windows[index] for index in rows], predictor.tokenizer, predictor.engine)
            for rows in group_by_length([len(one) for one in windows], budget, predictor.engine.shape)
        ]
        for budget in BUDGETS
    }

    def run(found: list[Any]) -> None:
        for batch in found:
            predictor.engine.run(batch)

    def measure(seconds: float) -> float:
        with on_core(0):
            calls = {budget: (lambda found=found: run(found)) for budget, found in grouped.items()}
            samples = timing.time_in_turn(calls, seconds, burst_calls=1, min_rounds=timing.ROUGH_MIN_ROUNDS)
        return max(1000 * len(texts) / float(np.median(found)) for found in samples.values())

    return measure


def run(coroutine: Any) -> load.Outcome:
    """Runs one measurement on an event loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found: load.Outcome = runner.run(coroutine)
        return found


@dataclass(frozen=True)
class Bench:
    """What is measured, and for how long each server is asked.

    `traces` are several of each mix, `alone` measures the engine by itself, and `capacity` is what it does, in texts
    a second.
    """

    servers: Servers
    seconds: float
    traces: Mapping[str, Sequence[load.Trace]]
    alone: Mapping[str, Callable[[float], float]]
    capacity: Mapping[str, float]

    def ask(self, name: str, trace: load.Trace, rate: float) -> dict[str, Any]:
        """Asks one server at a rate, after it has met all kinds of texts."""
        url, key = self.servers.urls[name], self.servers.key
        run(load.saturate(url, key, trace, 1, WARM_S))
        found = run(load.replay(url, key, trace, rate, self.seconds)).figures()
        if found["errors"] and name in ("bentoml", DOCUMENTED):
            self.servers.start(name)
        return found

    def loads(self) -> dict[str, Any]:
        """Asks every server at every load, in turn, once a trace."""
        found: dict[str, Any] = {name: {str(share): [] for share in LOADS} for name in self.servers.urls}
        for turn, trace in enumerate(self.traces["mixed"]):
            for share in LOADS:
                for name in np.random.default_rng([turn, round(10 * share)]).permutation(list(self.servers.urls)):
                    figures = self.ask(name, trace, share * self.capacity["mixed"])
                    found[name][str(share)].append(figures)
                    print(f"{share:.1f} {name:>22} {_line(figures)}", flush=True)
        return found

    def carried(self) -> dict[str, Any]:
        """Returns the highest rates, one a trace, at which p99 stays under a limit and nobody is refused."""
        found: dict[str, Any] = {}
        for mix, limit in LIMITS.items():
            for trace in self.traces[mix]:
                for name in ("cost", "bentoml", DOCUMENTED):
                    rate = self._carried(name, trace, limit, self.capacity[mix])
                    found.setdefault(mix, {}).setdefault(name, []).append(rate)
                    print(f"{mix} {name:>22} carries {rate:.0f} a second", flush=True)
        return found

    def _carried(self, name: str, trace: load.Trace, limit_ms: float, capacity: float) -> float:
        low, high = -20, 4  # exponents: rates from 3 % of the capacity to twice
        while high - low > 1:
            middle = (low + high) // 2
            figures = self.ask(name, trace, capacity * GRID**middle)
            holds = not figures["errors"] and figures["p99_ms"] < limit_ms
            low, high = (middle, high) if holds else (low, middle)
        return float(capacity * GRID**low)

    def efficiency(self) -> dict[str, Any]:
        """Compares texts a second at saturation with the engine alone, in turn, once all kinds have been met."""
        found = {}
        for traces in self.traces.values():
            self._saturated(traces[0])
        for mix, traces in self.traces.items():
            pairs = [(self._saturated(trace), self.alone[mix](self.seconds / 2)) for trace in traces]
            shares = [served / alone for served, alone in pairs]
            found[mix] = {"served": [one for one, _ in pairs], "alone": [one for _, one in pairs], "shares": shares}
            print(f"{mix}: {statistics.median(shares):.0%} of the engine's rate; all: {shares}", flush=True)
        return found

    def _saturated(self, trace: load.Trace) -> float:
        items = len(json.loads(trace.bodies[0])["texts"])
        clients = max(CLIENTS // items, LEAST_CLIENTS)
        outcome = run(load.saturate(self.servers.urls["cost"], self.servers.key, trace, clients, self.seconds / 2))
        return len(outcome.latencies) * items / outcome.seconds


def _line(figures: dict[str, Any]) -> str:
    return "{served:7.1f}/s  p50 {p50_ms:8.1f}  p99 {p99_ms:8.1f}  errors {errors}".format(**figures)


def main() -> None:
    """Measures and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines with a column `text`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one server at one load")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    texts = load.texts_of(arguments.texts)
    traces = {
        mix: [load.record(texts, count=30_000, seed=seed, **how) for seed in range(arguments.rounds)]
        for mix, how in MIXES.items()
    }
    alone = {mix: in_process(arguments.package, found[0]) for mix, found in traces.items()}
    capacity = {mix: measure(10) for mix, measure in alone.items()}
    print("texts a second of the engine alone:", capacity, flush=True)
    content = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    content |= {"machine": hardware.describe(), "capacity": capacity}
    with tempfile.TemporaryDirectory() as folder, Servers(arguments.package, Path(folder)) as servers, on_core(1):
        bench = Bench(servers, arguments.seconds, traces, alone, capacity)
        for part in arguments.parts:
            content[part] = getattr(bench, part)()
            arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
