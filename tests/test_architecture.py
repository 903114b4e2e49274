"""The one-way flow: what may import what, over the real import graph."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deploykit

ROOT = Path(deploykit.__file__).parent

# From the bottom to the top; a folder imports only from lower lines, from the left of its own line, and from itself.
FLOW = (
    ("no_telemetry", "process_state", "errors", "methods", "hardware", "client"),
    ("artifact", "recipe", "tokenizer", "images"),
    ("tasks", "engines"),
    ("inference",),
    ("data", "evaluation"),
    ("graphs", "quantizers"),
    ("modeling", "trainers", "pruners"),
    ("selection",),
    ("stages",),
    ("report", "pipeline", "cli"),
)
BELOW_SERVING = 4  # lines of FLOW that serving may import
USE_SERVING = {"", "cli"}  # the package, which exports its verbs, and the commands that start a service
EXCEPTIONS = {("engines.torch", "modeling")}  # the reference engine opens checkpoints
# The same for serving: a file imports from lower lines and its own; within a line, no cycle between folders.
SERVING_FLOW = (
    ("problems", "call", "settings", "patches"),
    ("access", "privacy"),
    ("telemetry",),
    ("queue",),
    ("model", "runtime"),
    ("http", "api"),
    ("preflight", "app", "service", "launch", "bento_store", "keys"),
)
SERVING_LINES = {name: line for line, names in enumerate(SERVING_FLOW) for name in names}
PLACES = {name: (line, place) for line, names in enumerate(FLOW) for place, name in enumerate(names)}
FILES = sorted(ROOT.rglob("*.py"))


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def folder_of(module):
    return module.partition(".")[0]


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
    names = (name for name in imports(file) if name.partition(".")[0] == "deploykit")
    return sorted({name.removeprefix("deploykit").removeprefix(".") for name in names})


def test_every_file_stands_in_a_folder_of_the_flow():
    assert len(FILES) > 15
    known = {*PLACES, "serving", "", "__main__"}
    assert [module for module in MODULES if folder_of(module) not in known] == []


@pytest.mark.parametrize("module", [module for module in MODULES if folder_of(module) in PLACES])
def test_imports_go_one_way(module):
    here = folder_of(module)
    for name in ours(MODULES[module]):
        there = folder_of(name)
        if there == "serving":
            assert here in USE_SERVING, f"{module} imports {name}"
        elif there and there != here and (module, there) not in EXCEPTIONS:
            assert PLACES[there] < PLACES[here], f"{module} imports {name}"


def test_serving_imports_only_what_a_served_model_needs():
    allowed = {"serving", "", *(name for line in FLOW[:BELOW_SERVING] for name in line)}
    for module, file in MODULES.items():
        if folder_of(module) == "serving":
            assert {folder_of(name) for name in ours(file)} <= allowed, module


def serving_imports():
    """Yields the names of two parts of serving, of which the first imports the second."""
    for module, file in MODULES.items():
        if module.startswith("serving."):
            for name in ours(file):
                here, there = module.split(".")[1], name.removeprefix("serving.").partition(".")[0]
                if name.startswith("serving.") and here != there:
                    yield here, there


def test_imports_within_serving_go_one_way():
    edges = set(serving_imports())
    assert {name for edge in edges for name in edge} <= set(SERVING_LINES)
    assert [edge for edge in edges if SERVING_LINES[edge[1]] > SERVING_LINES[edge[0]]] == []
    assert [edge for edge in edges if edge[::-1] in edges] == []


def test_only_the_exporter_and_the_quantizers_import_optimum():
    users = {
        module for module, file in MODULES.items() for name in imports(file) if name.partition(".")[0] == "optimum"
    }
    assert {module for module in users if module != "graphs.export" and not module.startswith("quantizers.")} == set()


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
    assert sorted(deploykit.__all__) == sorted(deploykit._MODULE_OF_NAME)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_has_more_than_300_lines(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 300
