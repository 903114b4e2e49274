"""Lists and imports methods; each file in the folders of tasks, trainers, pruners, quantizers and engines is one.

Only files in these folders can be loaded, so a recipe cannot import arbitrary code. They are imported on demand, so a
package needs to be installed only for the methods that use it. If it is missing, the error names the pip command.
"""

import ast
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel, ConfigDict

from deploykit.errors import MethodError, MissingExtraError, missing_extra_error

METHOD_FOLDERS = {
    "task": "tasks",
    "trainer": "trainers",
    "pruner": "pruners",
    "quantizer": "quantizers",
    "engine": "engines",
}
DEFAULT_EXTRA = "train"  # the pip extra of a method that names none
PACKAGE_EXTRAS = {"onnxruntime": "cpu"}  # the pip extras of packages that are in another one than their method


class Frozen(BaseModel):
    """Base class of data in files and requests: objects are immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Options(Frozen):
    """Options of a method or a section; numbers in them must be finite."""

    # The text below a field becomes its description. Only options have this, because it costs milliseconds per class.
    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)


def available(kind: str) -> tuple[str, ...]:
    """Lists the methods of a kind, sorted.

    Args:
        kind: a key of `METHOD_FOLDERS`, for example `"pruner"`.

    Example:
        >>> available("task")
        ('text-classification', 'token-classification')
    """
    folder = Path(__file__).parent / METHOD_FOLDERS[kind]
    files = (file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    return tuple(sorted(stem.replace("_", "-") for stem in files))


def load(kind: str, name: str) -> ModuleType:
    """Imports one method.

    Args:
        kind: a key of `METHOD_FOLDERS`.
        name: a name that `available(kind)` lists.

    Raises:
        MethodError: the folder has no such file.
        MissingExtraError: the method needs a package that is missing or broken.
    """
    names = available(kind)
    if name not in names:
        raise MethodError(f"no {kind} is called {name!r}{did_you_mean(name, names)}. There are: {', '.join(names)}.")
    try:
        return import_module(f"deploykit.{METHOD_FOLDERS[kind]}.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        raise explain_missing_module(error, f"the {kind} {name!r}", required_extra(kind, name)) from error
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


def required_extra(kind: str, name: str) -> str:
    """Returns the pip extra that a method needs, its constant `EXTRA`, without importing the method."""
    for node in _parsed(kind, name).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["EXTRA"]:
            return str(ast.literal_eval(node.value))
    return DEFAULT_EXTRA


def _parsed(kind: str, name: str) -> ast.Module:
    """Parses the file of a method."""
    file = Path(__file__).parent / METHOD_FOLDERS[kind] / f"{name.replace('-', '_')}.py"
    return ast.parse(file.read_text(encoding="utf-8"))


def explain_missing_module(error: ModuleNotFoundError, wanted_by: str, extra: str = DEFAULT_EXTRA) -> Exception:
    """Returns an error that names the pip extra of a missing package.

    Args:
        error: names the module. If that is a module of deploykit, the error is returned as it is, because it is a bug.
        wanted_by: who needs the package, for the message.
        extra: the pip extra that brings the package.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", "deploykit"):
        return error
    return missing_extra_error(wanted_by, package, PACKAGE_EXTRAS.get(package, extra))


def did_you_mean(name: str, names: tuple[str, ...] | list[str]) -> str:
    """Returns the text `" (did you mean 'x'?)"` with the most similar of the names; empty if none is similar."""
    similar = get_close_matches(name, names, n=1)
    return f" (did you mean {similar[0]!r}?)" if similar else ""
