"""The one-way flow: what may import what, over the real import graph."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deploykit

ROOT = Path(deploykit.__file__).parent

# From the bottom to the top; a file imports only from lower lines, or from its own room.
LEVELS = (
    ("errors", "recipes", "execution", "cost", "drift"),
    ("artifact", "methods", "hardware", "layouts", "overrides", "cache", "client"),
    ("mistakes", "signing"),
    ("recipe", "tokenizer", "lengths"),
    ("tasks", "engines"),
    ("predictor",),
    ("fallback",),
    ("golden",),
    ("data",),
    ("evaluation",),
    ("architectures",),
    ("configuration",),
    ("checkpoint",),
    ("base_tokenizer", "engines.torch", "optimizer", "progress", "deadline", "tracing"),
    ("preflight",),
    ("fitting",),  # the engine of reference reads checkpoints
    ("products",),
    ("trainers", "quantizers", "surgery"),
    ("graphs", "sensitivity"),
    ("timing",),
    ("pruners",),  # which time what they make as the stages after them would serve it
    ("selection",),
    ("grid",),
    ("bench",),
    ("search",),
    ("job",),
    ("bundle", "serving"),
    ("training", "pruning", "exporting", "quantization", "packaging", "retuning"),
    ("summary", "scaffold", "diagnosis", "explaining", "labelling"),
    ("report",),
    ("pipeline",),
    ("",),  # the package itself, which exports the verbs
    ("fleet", "benchmarking"),
    ("demo",),
    ("cli_print",),
    ("cli_keys",),
    ("cli",),
    ("__main__",),
)
# Rooms that see less than their line allows.
CLOSED = {
    "serving": {
        "errors",
        "execution",
        "cost",
        "drift",
        "artifact",
        "methods",
        "tokenizer",
        "hardware",
        "predictor",
        "fallback",
        "golden",
        "signing",
        "tasks",
        "engines",
    },
    "client": {"errors"},
    "fleet": {"errors", "artifact", "methods", "hardware", "recipe"},
    "benchmarking": {"errors", "artifact", "methods", "hardware", "recipe"},
}
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def room_of(module):
    """The longest entry of the table that the module lies in."""
    parts = module.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in LEVEL_OF), None)


def imports(file):
    """Yields what a file imports, wherever in it and be it for annotations; the version is everybody's."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name != "deploykit")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "deploykit":
            yield from () if node.attr == "__version__" else ("deploykit",)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports by a relative name"
            for name in [name for name in node.names if name.name != "__version__"]:
                inside = f"{node.module}.{name.name}"
                yield inside if inside.removeprefix("deploykit.") in MODULES else node.module


def ours(file):
    found = {
        name.removeprefix("deploykit").removeprefix(".")
        for name in imports(file)
        if name.partition(".")[0] == "deploykit"
    }
    return sorted(found)


def test_there_are_files_and_all_are_in_the_table():
    assert len(FILES) > 15
    assert [module for module in MODULES if room_of(module) is None] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    here = room_of(module)
    for name in ours(MODULES[module]):
        there = room_of(name)
        assert there == here or LEVEL_OF[there] < LEVEL_OF[here], f"{module or 'deploykit'} imports {name}"


@pytest.mark.parametrize("room", CLOSED)
def test_closed_rooms_import_only_what_they_may(room):
    for module, file in MODULES.items():
        if room_of(module) == room:
            found = {room_of(name) for name in ours(file)} - {room}
            assert found <= CLOSED[room], f"{module} imports {sorted(found - CLOSED[room])}"


def test_only_the_exporter_and_the_quantizers_import_optimum():
    users = {
        module for module, file in MODULES.items() for name in imports(file) if name.partition(".")[0] == "optimum"
    }
    assert {module for module in users if module != "tracing" and not module.startswith("quantizers.")} == set()


IMPORT = """
import sys, time
start = time.perf_counter()
import deploykit
print(time.perf_counter() - start, "torch" in sys.modules)
"""


def test_importing_the_package_is_quick_and_brings_no_torch():
    command = [sys.executable, "-c", IMPORT]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT.parent) for _ in range(3)]
    found = [run.stdout.split() for run in runs]
    assert {torch for _, torch in found} == {"False"}
    assert min(float(seconds) for seconds, _ in found) < 0.3


def test_every_public_verb_can_be_imported_and_nothing_else():
    with pytest.raises(AttributeError, match="module 'deploykit' has no attribute 'trian'"):
        _ = deploykit.trian
    assert sorted(deploykit.__all__) == sorted(deploykit._HOME)
