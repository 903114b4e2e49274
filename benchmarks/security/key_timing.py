"""Does the time of a refusal tell which key ids exist?

Wrong secrets are presented with ids that do not exist, that do, that are disabled and that have expired, in random
order: to the check itself, and over HTTP to a service that is started for it. Samples are compared with those of
unknown ids by the tests of Mann and Whitney and of Kolmogorov and Smirnov; the effect is the probability that a refusal
of the one kind takes longer than one of the other, 0.5 for none. The p-values hold for independent samples, which a
machine that does other things does not give; the command fails by the effect.

    python benchmarks/security/key_timing.py --calls 20000 --package runs/movies/package --requests 3000
"""

import argparse
import gc
import http.client
import json
import os
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scipy import stats

from deploykit.serving import launch
from deploykit.serving.access import check as key_check
from deploykit.serving.access import keys

KINDS = ("unknown", "known", "disabled", "expired")
EACH = 50  # keys of a kind
MOST_EFFECT = 0.02  # seven standard deviations of 20,000 calls of a kind


def filled(file: Path, each: int) -> dict[str, list[str]]:
    """Makes a key file; returns ids by kind."""
    past = datetime.now(UTC) - timedelta(days=1)
    found = {
        "unknown": [secrets.token_hex(4) for _ in range(each)],
        "known": [keys.add(file, "known")[3:11] for _ in range(each)],
        "disabled": [keys.add(file, "disabled")[3:11] for _ in range(each)],
        "expired": [keys.add(file, "expired", expires=past)[3:11] for _ in range(each)],
    }
    keys.set_disabled(file, "disabled", disabled=True)
    return found


def sampled(refuse: Callable[[str], None], ids: dict[str, list[str]], calls: int, seed: int) -> dict[str, list[float]]:
    """Times refusals in a random order; returns seconds by kind."""
    chance, kinds = random.Random(seed), list(KINDS * calls)
    chance.shuffle(kinds)
    texts = [f"dk_{chance.choice(ids[kind])}_{secrets.token_urlsafe(32)}" for kind in kinds]
    for text in texts[:200]:
        refuse(text)
    took = []  # told apart by kind only afterwards: a name looked up in the loop is in a cache, or not, by its kind
    gc.disable()
    for text in texts:
        start = time.perf_counter_ns()
        refuse(text)
        took.append(time.perf_counter_ns() - start)
    gc.enable()
    return {
        one: [nanoseconds * 1e-9 for kind, nanoseconds in zip(kinds, took, strict=True) if kind == one] for one in KINDS
    }


def compared(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Compares each kind with unknown ids."""
    base, found = seconds["unknown"], {}
    for kind in KINDS[1:]:
        test = stats.mannwhitneyu(seconds[kind], base)
        found[kind] = {
            "median_us": float(stats.scoreatpercentile(seconds[kind], 50)) * 1e6,
            "median_us_unknown": float(stats.scoreatpercentile(base, 50)) * 1e6,
            "effect": float(test.statistic) / len(seconds[kind]) / len(base),
            "p_mann_whitney": float(test.pvalue),
            "p_kolmogorov_smirnov": float(stats.ks_2samp(seconds[kind], base).pvalue),
        }
    return found


def in_process(calls: int, seed: int) -> dict[str, Any]:
    """Asks the check itself."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.json"
        ids = filled(file, EACH)
        check = key_check.KeyChecker(file).check
        return compared(sampled(lambda text: check(text, "predict"), ids, calls, seed))


def over_http(package: Path, port: int, calls: int, seed: int) -> dict[str, Any]:
    """Asks a service, on one connection."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.json"
        ids = filled(file, EACH)
        environ = {**os.environ, "BENTOML_HOME": str(Path(folder) / "bentoml")}
        with launch.running_service(package, file, port, environ) as url:
            wire = http.client.HTTPConnection(urlsplit(url).netloc)

            def refuse(text: str) -> None:
                wire.request("GET", "/v2", headers={"x-api-key": text})
                answer = wire.getresponse()
                answer.read()
                if answer.status != 401:
                    raise SystemExit(f"expected 401, got {answer.status}")

            return compared(sampled(refuse, ids, calls, seed))


def main() -> int:
    """Measures and prints; returns 1 where the time tells something."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=20_000, help="of the check, of each kind")
    parser.add_argument("--package", type=Path, help="is served to ask over HTTP, too")
    parser.add_argument("--port", type=int, default=0, help="to serve it on; 0 takes a free one")
    parser.add_argument("--requests", type=int, default=3_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = {"in process": in_process(options.calls, options.seed)}
    if options.package:
        found["over HTTP"] = over_http(options.package, options.port, options.requests, options.seed)
    print(json.dumps(found, indent=2))
    effects = [one["effect"] for one in found["in process"].values()]
    return int(any(abs(effect - 0.5) > MOST_EFFECT for effect in effects))


if __name__ == "__main__":
    sys.exit(main())
