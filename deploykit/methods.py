"""A folder is a registry: each file of a plural folder is one method.

Only names that are listed in the folder can be loaded, so a recipe can never import an arbitrary path.
Files are imported on demand; that is the only laziness in the package, and it is here that a missing
package becomes the pip command that adds it.
"""

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
EXTRA_OF = {"onnxruntime": "cpu", "openvino": "openvino"}  # every other package of the path comes with `train`


class Frozen(BaseModel):
    """Base of what is read and written: immutable, unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Options(Frozen):
    """Base of the options of methods; infinite numbers are refused."""

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
        MissingExtraError: the method needs a package that is not installed, or is broken.
    """
    names = available(kind)
    if name not in names:
        raise MethodError(f"no {kind} is called {name!r}{did_you_mean(name, names)}. There are: {', '.join(names)}.")
    try:
        return import_module(f"deploykit.{FOLDERS[kind]}.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        raise missing_extra(error, f"the {kind} {name!r}") from error
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "deploykit":  # a defect of ours
            raise
        raise MissingExtraError(
            f"the {kind} {name!r} cannot be imported: {error}. A package that it needs is installed, but broken or of a"
            " version that does not fit. Install it again."
        ) from error


def missing_extra(error: ModuleNotFoundError, wanted_by: str) -> Exception:
    """Says which extra brings the package that could not be imported.

    A missing module of deploykit itself is a defect, and is returned as it is.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", "deploykit"):
        return error
    return extra_missing(wanted_by, package, EXTRA_OF.get(package, "train"))


def did_you_mean(name: str, names: tuple[str, ...] | list[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the nearest known name, or nothing."""
    nearest = get_close_matches(name, names, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
