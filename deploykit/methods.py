"""Lists and imports methods: each file in one of the folders is a method.

Only files in these folders can be loaded, so a recipe cannot import arbitrary code. They are imported on demand, so a
package is needed only by the methods that use it; if it is missing, the error names the pip command.
"""

import ast
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel, ConfigDict

from deploykit.errors import MethodError, MissingExtraError, extra_missing

FOLDERS = {
    "task": "tasks",
    "trainer": "trainers",
    "pruner": "pruners",
    "quantizer": "quantizers",
    "engine": "engines",
}
DEFAULT_EXTRA = "train"  # pip extra of a method that names none
EXTRA_OF = {"onnxruntime": "cpu"}  # not in the extra `train`, because `gpu` brings it as well


class Frozen(BaseModel):
    """Base of data that is read and written: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Options(Frozen):
    """Base of options, whose numbers must be finite."""

    # A text below a field describes it; only in options, because reading it takes milliseconds per class at each start.
    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)


def available(kind: str) -> tuple[str, ...]:
    """Lists the methods of a kind, sorted.

    Args:
        kind: a key of `FOLDERS`, for example `"pruner"`.

    Example:
        >>> available("task")
        ('text-classification', 'token-classification')
    """
    folder = Path(__file__).parent / FOLDERS[kind]
    files = (file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    return tuple(sorted(stem.replace("_", "-") for stem in files))


def load(kind: str, name: str) -> ModuleType:
    """Imports one method.

    Args:
        kind: a key of `FOLDERS`.
        name: a name that `available(kind)` lists.

    Raises:
        MethodError: the folder has no such file.
        MissingExtraError: the method needs a package that is missing or broken.
    """
    names = available(kind)
    if name not in names:
        raise MethodError(f"no {kind} is called {name!r}{did_you_mean(name, names)}. There are: {', '.join(names)}.")
    try:
        return import_module(f"deploykit.{FOLDERS[kind]}.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        raise missing_extra(error, f"the {kind} {name!r}", extra(kind, name)) from error
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "deploykit":  # a bug
            raise
        raise MissingExtraError(
            f"the {kind} {name!r} cannot be imported: {error}. A package that it needs is installed, but broken or of a"
            " version that does not fit. Install it again."
        ) from error


def summary(kind: str, name: str) -> str:
    """Returns the first line of a method's docstring, without importing the method."""
    return (ast.get_docstring(_parsed(kind, name)) or "").partition("\n")[0]


def extra(kind: str, name: str) -> str:
    """Returns the pip extra that a method needs, its constant `EXTRA`, without importing the method."""
    for node in _parsed(kind, name).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["EXTRA"]:
            return str(ast.literal_eval(node.value))
    return DEFAULT_EXTRA


def _parsed(kind: str, name: str) -> ast.Module:
    file = Path(__file__).parent / FOLDERS[kind] / f"{name.replace('-', '_')}.py"
    return ast.parse(file.read_text(encoding="utf-8"))


def missing_extra(error: ModuleNotFoundError, wanted_by: str, extra: str = DEFAULT_EXTRA) -> Exception:
    """Returns an error that names the extra of a missing package, or the same error for a module of deploykit."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "deploykit"):
        return error
    return extra_missing(wanted_by, package, EXTRA_OF.get(package, extra))


def did_you_mean(name: str, names: tuple[str, ...] | list[str]) -> str:
    """Returns `" (did you mean 'x'?)"` with the most similar name; empty if none is similar."""
    nearest = get_close_matches(name, names, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
