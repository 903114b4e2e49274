"""Attacks a real service with malformed HTTP, odd headers and paths, and JSON of every wrong kind.

Each case is made from the seed and its number, so that one that fails can be asked again (`--first N --cases 1`). It
is a violation when an answer is a 5xx other than a deliberate 503 or 504, or no problem details, or late; when a
traceback or an error stands in the log; when the sets of label values in the metrics grow; when the service does not
answer readiness meanwhile, or as before afterwards.

    python benchmarks/security/fuzz_service.py --package runs/movies/package --cases 20000 --output fuzz.json
    python benchmarks/security/fuzz_service.py --url http://127.0.0.1:3000 --key dk_... --cases 20000
"""

import argparse
import contextlib
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hostile
from hostile import Case, Target

from deploykit.serving import launch
from deploykit.serving.access import keys

LIMIT_S = 30.0  # for an answer; the service's own deadline comes first
STALL_S = 5.0  # for readiness: more, and an orchestrator would doubt the service
PATIENCE_S = 0.3  # with bytes that are no whole request, before the connection is half closed
SERVER = (  # what the server under the service says of bytes that are no request to it
    *(b"Invalid HTTP request received.", b"The head of the request is too large.", b""),
)
SMALL = 60_000  # bytes that are read in one go
FAILED = "the service could not check this request"
BUSY = b"too many texts are waiting"
TRIES, PAUSE_S = 100, 0.1
STATUSES = (200, 307, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 431, 503, 504)
PROBLEM = "application/problem+json"
SHOWN = 20  # violations in the summary
SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? \S+$", re.M)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass
class Findings:
    """What came out."""

    answers: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    longest_stall_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def violation(self, text: str) -> None:
        """Notes one."""
        with self.lock:
            self.violations.append(text)


@dataclass(frozen=True)
class Answer:
    """One of the answers on a connection."""

    status: int
    headers: dict[str, str]
    content: bytes


def exchange(address: tuple[str, int], case: Case) -> tuple[bytes, float, str]:
    """Sends a case; returns what came back, the seconds it took, and how the connection ended."""
    found, start, end = b"", time.monotonic(), "open"
    patient = case.answered or case.kind == "slow"
    limit_s = LIMIT_S + case.pause_s * len(case.parts)
    try:
        with socket.create_connection(address, LIMIT_S) as wire:
            for part in case.parts:
                wire.sendall(part)
                time.sleep(case.pause_s)
            while end == "open" and time.monotonic() - start < limit_s:
                wire.settimeout(LIMIT_S if patient else PATIENCE_S)
                try:
                    got = wire.recv(65536)
                    found, end = found + got, end if got else "closed"
                except TimeoutError:
                    if not patient:
                        wire.shutdown(socket.SHUT_WR)
                    patient = True
    except ConnectionError:  # what was still on its way to the service is why its answer may be lost
        end = "reset"
    return found, time.monotonic() - start, end


def answers(raw: bytes, method: str) -> list[Answer]:
    """Cuts what came back into answers; interim ones are left out."""
    found = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        empty = (method == "HEAD" and not headers.get("content-type", "").startswith("text/plain")) or status < 200
        length = 0 if empty else int(headers.get("content-length", len(rest)))
        if status >= 200:
            found.append(Answer(status, headers, rest[:length]))
        raw = rest[length:]
    return found


def faults(case: Case, found: list[Answer], key: str) -> Iterator[str]:
    """Says what is wrong with the answers to a case."""
    if len(found) > case.requests:
        yield f"{len(found)} answers to {case.requests} requests"
    for answer in found:
        if key.encode() in answer.content or b"Traceback" in answer.content:
            yield "an answer that tells too much"
        if answer.status not in STATUSES:
            yield f"status {answer.status}: {answer.content[:200]!r}"
        if answer.status >= 400 and case.method != "HEAD":
            yield from _wrong_problem(case, answer)


def _wrong_problem(case: Case, answer: Answer) -> Iterator[str]:
    if answer.headers.get("content-type") != PROBLEM:
        if case.parsed or answer.status not in (400, 403) or answer.content not in SERVER:
            yield f"status {answer.status} without problem details: {answer.content[:200]!r}"
        return
    problem = json.loads(answer.content)
    if problem["status"] != answer.status or problem["instance"] != answer.headers.get("x-request-id"):
        yield f"problem details that do not fit: {problem}"
    if answer.status >= 500 and problem["detail"].startswith(FAILED):
        yield f"an error that was not foreseen: {problem}"


def ask(address: tuple[str, int], number: int, case: Case, key: str, findings: Findings) -> list[Answer]:
    """Sends a case, again while the service is busy with those before, and judges what came back."""
    for _ in range(TRIES):
        raw, seconds, end = exchange(address, case)
        if BUSY not in raw:
            break
        with findings.lock:
            findings.answers["busy, asked again"] += 1
        time.sleep(PAUSE_S)
    try:
        found = answers(raw, case.method)
        wrong = list(faults(case, found, key))
        if case.answered and not found and not (end == "reset" and len(case.parts[0]) > SMALL):
            wrong.append("no answer")
    except (ValueError, IndexError, KeyError) as error:
        found, wrong = [], [f"an answer that is none ({error!r}): {raw[:200]!r}"]
    if end == "open":
        wrong.append(f"the connection was still open after {seconds:.0f} s")
    with findings.lock:
        findings.kinds[case.kind] += 1
        findings.answers.update(str(answer.status) for answer in found)
        findings.answers["closed without an answer"] += not found
        findings.slowest_s[case.kind] = max(findings.slowest_s[case.kind], seconds)
    for text in wrong:
        sent = b"".join(case.parts)
        findings.violation(f"case {number} ({case.kind}): {text}; sent {len(sent)} bytes: {sent[:160]!r}")
    return found


def get(url: str, key: str = "") -> bytes:
    """Reads a page."""
    asked = urllib.request.Request(url, headers={"x-api-key": key} if key else {})
    with launch.DIRECT_OPENER.open(asked, timeout=LIMIT_S) as page:
        content: bytes = page.read()
        return content


def explored(url: str, key: str) -> Target:
    """Reads from the description of the API what there is."""
    paths = json.loads(get(f"{url}/docs.json", key))["paths"]
    posts = tuple(path for path, item in paths.items() if "post" in item)
    gets = tuple(path for path, item in paths.items() if "get" in item)
    return Target(key, posts, (*gets, hostile.FILE))


def scraped(url: str, key: str) -> tuple[dict[tuple[str, str], set[str]], int, dict[str, float]]:
    """Returns the label values by metric and label, how many series there are, and values without labels."""
    page = get(f"{url}/metrics", key).decode()
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    series = SERIES.findall(page)
    for name, labels in series:
        for label, value in LABEL.findall(labels):
            values[name, label].add(value)
    plain = {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", page, re.M)}
    return dict(values), len(series), plain


@contextlib.contextmanager
def watched(url: str, findings: Findings) -> Iterator[None]:
    """Asks for readiness all the time, and notes how long it took at worst."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            start = time.monotonic()
            try:
                get(f"{url}/readyz")
            except OSError as error:
                findings.violation(f"not ready meanwhile: {error}")
            findings.longest_stall_s = max(findings.longest_stall_s, time.monotonic() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if findings.longest_stall_s > STALL_S:
            findings.violation(f"readiness took {findings.longest_stall_s:.1f} s")


def attack(url: str, key: str, options: argparse.Namespace, log: Path | None) -> tuple[Findings, dict[str, Any]]:
    """Sends all cases; returns what came out, and its figures."""
    findings, target, parts = Findings(), explored(url, key), urlsplit(url)
    address = (str(parts.hostname), int(parts.port or 80))
    for case in hostile.warm_up(target):
        ask(address, -1, case, key, findings)
    usual = [ask(address, -1, case, key, Findings())[0] for case in hostile.warm_up(target)[: len(target.posts)]]
    before, series, plain = scraped(url, key)
    start = time.monotonic()
    with watched(url, findings), ThreadPoolExecutor(options.clients) as pool, ThreadPoolExecutor(64) as patient:
        for number in range(options.first, options.first + options.cases):
            case = hostile.make(options.seed, number, target)
            if case.kind != "slow":
                pool.submit(_ask, address, number, case, key, findings)
            elif not options.quick:
                patient.submit(_ask, address, number, case, key, findings)
    seconds = time.monotonic() - start
    after, series_after, plain_after = scraped(url, key)
    for name in sorted(set(after) | set(before)):
        if grown := after.get(name, set()) - before.get(name, set()):
            findings.violation(f"the label {name[1]} of {name[0]} has new values: {sorted(grown)}")
    for case, expected in zip(hostile.warm_up(target), usual, strict=False):
        found = ask(address, -1, case, key, Findings())
        if [(one.status, len(one.content)) for one in found] != [(200, len(expected.content))]:
            findings.violation(f"the service answers otherwise than before: {found}, expected {expected}")
    text = log.read_text(errors="replace") if log else ""
    for mark in ("Traceback", '"level": "error"', "[ERROR]"):
        if count := text.count(mark):
            findings.violation(f"{count} times {mark!r} in the log: {text[text.index(mark) :][:9000]}")
    memory = [round(found["deploykit_process_resident_bytes"] / 2**20) for found in (plain, plain_after)]
    files = [found["deploykit_process_open_files"] for found in (plain, plain_after)]
    figures = {
        "seconds": round(seconds, 1),
        "series": [series, series_after],
        "resident_mib": memory,
        "open_files": files,
        "longest_stall_s": round(findings.longest_stall_s, 3),
    }
    return findings, figures


def _ask(address: tuple[str, int], number: int, case: Case, key: str, findings: Findings) -> None:
    try:
        ask(address, number, case, key, findings)
    except Exception as error:  # of a thread; it would be lost
        findings.violation(f"case {number} ({case.kind}): {error!r}")


@contextlib.contextmanager
def service(options: argparse.Namespace) -> Iterator[tuple[str, str, Path | None]]:
    """Starts the service, unless one is running; yields its address, a key and its log."""
    if options.url:
        yield options.url.rstrip("/"), options.key, options.log
        return
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "keys.json", Path(folder) / "log"
        key = keys.add(file, "fuzz", keys.SCOPES)
        environ = {**os.environ, "BENTOML_HOME": str(Path(folder) / "bentoml")}
        with launch.running_service(options.package, file, options.port, environ, log) as url:
            yield url, key, log


def main() -> int:
    """Attacks and prints what came of it; returns 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, help="is served for the attack")
    parser.add_argument("--port", type=int, default=0, help="to serve it on; 0 takes a free one")
    parser.add_argument("--url", help="of a service that is running; its key must open every scope, without limits")
    parser.add_argument("--key", default="", help="of that service")
    parser.add_argument("--log", type=Path, help="of that service")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=4, help="cases at the same time")
    parser.add_argument("--quick", action="store_true", help="leave out the requests that never end")
    parser.add_argument("--output", type=Path, help="gets the figures as JSON")
    options = parser.parse_args()
    if not options.package and not options.url:
        parser.error("name a --package, or the --url of a service")
    with service(options) as (url, key, log):
        findings, figures = attack(url, key, options, log)
    content = {
        "cases": options.cases,
        "seed": options.seed,
        **figures,
        "kinds": dict(findings.kinds),
        "answers": dict(sorted(findings.answers.items())),
        "slowest_s": {kind: round(seconds, 2) for kind, seconds in findings.slowest_s.items()},
        "violations": len(findings.violations),
    }
    print(json.dumps(content, indent=2))
    for text in findings.violations[:SHOWN]:
        print(f"violation: {text}")
    if options.output:
        options.output.write_text(json.dumps({**content, "violations": findings.violations}, indent=2) + "\n")
    return int(bool(findings.violations))


if __name__ == "__main__":
    sys.exit(main())
