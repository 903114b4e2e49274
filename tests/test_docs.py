"""The documentation: generated pages are up to date, links lead somewhere, the recipe's schema fits its recipes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mkdocs.config import load_config

from deploykit.recipe import json_schema

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)]*)?\)")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries, when they are imported
def test_generated_pages_are_up_to_date(monkeypatch, capsys):
    """In this process, because another one would import everything for seconds."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    import generate

    assert (generate.main(), capsys.readouterr().out) == (0, ""), "make docs"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    targets = [match[1] for match in LINK.finditer(page.read_text(encoding="utf-8"))]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_stands_in_the_navigation():
    def names(entry):
        if isinstance(entry, str):
            return [entry]
        return [name for part in (entry.values() if isinstance(entry, dict) else entry) for name in names(part)]

    content = load_config(str(ROOT / "mkdocs.yml"))
    assert sorted(names(content["nav"])) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES)


def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reference" / "recipe.html").is_file()


def as_editors_read(file):
    """Returns a YAML file with `1e-4` as the number that YAML 1.2 has there, and PyYAML's YAML 1.1 has not."""

    def value(thing):
        if isinstance(thing, dict):
            return {key: value(below) for key, below in thing.items()}
        number = isinstance(thing, str) and re.fullmatch(r"\d+(\.\d*)?e[-+]?\d+", thing)
        return float(thing) if number else thing

    return value(yaml.safe_load(file.read_text()))


RECIPES = sorted([*ROOT.glob("deploykit/recipe/shipped/*.yaml"), *ROOT.glob("benchmarks/recipes/*.yaml")])


@pytest.fixture(scope="module")
def validator():
    import jsonschema_rs

    return jsonschema_rs.validator_for(json_schema.schema())


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_recipes_fit_the_schema(validator, file):
    assert [str(error) for error in validator.iter_errors(as_editors_read(file))] == []


@pytest.mark.parametrize(
    "change",
    [
        {"trian": None},
        {"task": "text-clasification"},
        {"train": {"method": "full", "epochs": 0}},
        {"train": {"method": "full", "keep": 0.5}},
        {"prune": [{"method": "width", "keep": "much"}]},
        {"quantize": {"method": "no-such"}},
    ],
    ids=json.dumps,
)
def test_the_schema_refuses_what_the_parser_refuses(validator, change):
    content = {"name": "n", "task": "text-classification", "model": "m", "data": {"train": "t.csv"}}
    assert validator.is_valid(content)
    assert not validator.is_valid({**content, **change})
