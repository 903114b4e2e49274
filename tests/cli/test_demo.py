"""The demo's data: what is taken of the source, how it is cut, and what a kill or a missing network does."""

import json
from collections import Counter

import pytest

from deploykit import recipe
from deploykit.cli import demo
from deploykit.errors import InputError

LINES = [
    "1\t2.26\tA  warm,\tfunny film.",
    "2\t-1.9\tDull.",
    "3\t0.29\tIt is a film.",
    "4\t-0.3\tNot quite it.",
    "5\t1.0\tdull.",
    "6\t3.0\t  ",
]


def test_without_a_registry_it_says_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        InputError, match=r"vaderSentiment==3\.3\.2 could not be downloaded: .*needs the package registry"
    ):
        demo.prepare(tmp_path / "demo")
    assert list((tmp_path / "demo").iterdir()) == []


def test_neutral_repeated_and_empty_reviews_are_left_out():
    assert demo.parse("\r\n".join(LINES)) == [
        {"text": "A warm, funny film.", "label": "positive"},
        {"text": "Dull.", "label": "negative"},
        {"text": "Not quite it.", "label": "negative"},
    ]


def test_splits_are_disjoint_fixed_in_size_and_always_the_same():
    rows = [{"text": str(index), "label": "positive"} for index in range(4000)]
    found = demo.split(rows)
    assert {name: len(part) for name, part in found.items()} == {"train": 1500, "test": 1500, "validation": 1000}
    assert max(Counter(row["text"] for part in found.values() for row in part).values()) == 1
    assert found == demo.split(rows)


def test_what_is_there_is_kept(tmp_path, monkeypatch):
    rows = [f"{index}\t{'-' if index % 2 else ''}2.0\treview {index}" for index in range(3000)]
    monkeypatch.setattr(demo, "download_reviews", lambda: "\n".join(rows))
    path = demo.prepare(tmp_path)
    loaded = recipe.load(path)
    assert loaded.name == "movie-reviews"
    minutes = demo.choose_minutes()
    assert loaded.steps("train")[0][1].minutes == minutes.train
    assert loaded.steps("prune")[0][1].distill.minutes == minutes.distill
    assert loaded.steps("quantize")[0][1].minutes == minutes.search
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 500
    assert json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0])["label"] in ("positive", "negative")

    path.write_text(path.read_text() + "# mine\n")
    monkeypatch.setattr(demo, "download_reviews", lambda: pytest.fail("it was downloaded again"))
    assert demo.prepare(tmp_path).read_text().endswith("# mine\n")
    assert not [found for found in tmp_path.iterdir() if found.name.endswith(".draft")]


def test_a_slower_cpu_gets_more_minutes(monkeypatch):
    monkeypatch.setattr(demo.hardware, "gpus", lambda: ())
    monkeypatch.setattr(demo.hardware, "cpu_features", lambda: ("avx2", "amx_bf16"))
    fast = demo.choose_minutes()
    monkeypatch.setattr(demo.hardware, "cpu_features", lambda: ("avx2",))
    assert all(more > less for more, less in zip(demo.choose_minutes(), fast, strict=True))


def test_each_stage_is_estimated_from_the_minutes_of_its_recipe():
    content = {"name": "n", "task": "text-classification", "model": "m", "data": {"train": "t.csv"}}
    sections = {"train": {"method": "full", "minutes": 2}, "prune": {"method": "width", "distill": {"minutes": 1}}}
    rows = dict(
        demo.estimate_times(recipe.parse({**content, **sections, "quantize": {"method": "auto", "minutes": 0.5}}))
    )
    assert rows["train"] == f"about {120 + demo.OVERHEAD_S['train']} s"
    assert rows["prune"] == f"about {60 + demo.OVERHEAD_S['prune']} s"
    assert rows["quantize"] == f"about {30 + demo.OVERHEAD_S['quantize']} s"
    assert dict(demo.estimate_times(recipe.parse(content)))["train"] == "no limit in the recipe"
