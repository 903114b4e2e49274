"""The recipe: a frozen, validated statement of one whole run. It holds no behaviour.

One YAML file, read by the safe loader; `key=value` overrides come on top. All mistakes are reported at
once, unknown keys with the nearest known one. Each method's options live in the method's own file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deploykit import methods
from deploykit.errors import DeploykitError, RecipeError
from deploykit.recipe.overrides import apply
from deploykit.recipe.schema import (
    KIND_OF_STAGE,
    NO_METHOD,
    STAGES,
    Recipe,
    Steps,
    as_list,
    named_paths,
    without_method,
)
from deploykit.recipe.sections import DataSection, ExportSection, GateSection, PackageSection
from deploykit.recipe.validation import explain

DATA_FILE = re.compile(r"\.(csv|tsv|jsonl|json|parquet)(?:\.(?:gz|bz2|xz))?$", re.IGNORECASE)


def load(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: a YAML file. Paths inside it are relative to its directory.
        overrides: `key=value` each, with dots for nested keys: `train.epochs=1`. Values are YAML.

    Raises:
        RecipeError: lists every mistake.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}. Write one with: deploykit init") from None
    except OSError as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe {path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"the recipe {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"the recipe {path} must hold keys and values, found {type(content).__name__}.")
    for override in overrides:
        apply(content, override)
    return parse(content, folder=path.parent, source=str(path))


def parse(content: Mapping[str, Any], folder: Path = Path(), source: str = "the recipe") -> Recipe:
    """Validates a recipe that is already in memory.

    Args:
        content: what the YAML file would hold.
        folder: what its relative paths start from.
        source: named in the message.

    Raises:
        RecipeError: lists every mistake.
    """
    mistakes: list[str] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        mistakes += explain(error, Recipe, ())
    mistakes += _method_mistakes(content)
    if recipe is not None and recipe.export is None and (recipe.quantize or recipe.package):
        mistakes.append("export: null writes no graph for quantize and package: set both to null, too")
    if recipe is not None and recipe.labels and recipe.train is not None:
        mistakes.append("labels: renames the labels of a model that is taken as it is, got no train: null")
    if mistakes or recipe is None:
        listing = "\n".join(f"  - {mistake}" for mistake in mistakes)
        raise RecipeError(f"{source} has {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}:\n{listing}")
    return _resolve_paths(recipe, folder)


def _method_mistakes(content: Mapping[str, Any]) -> Iterator[str]:
    for place, kind, step in [("task", "task", {"method": content.get("task")}), *_steps(content)]:
        name = step.get("method")
        if not isinstance(name, str):
            if "[" in place:  # otherwise the model above has said so
                yield f"{place}: {NO_METHOD}, got {step!r}"
            continue
        try:
            method = methods.load(kind, name)
            if kind != "task":
                method.Options.model_validate(without_method(step))
        except ValidationError as error:
            yield from explain(error, method.Options, (place,))
        except DeploykitError as error:
            yield f"{place}: {error}"


def _steps(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields place, kind and content of every section that names a method, and of every step of one that is a list."""
    for stage, kind in KIND_OF_STAGE.items():
        section = content.get(stage)
        several = isinstance(section, list)
        for index, step in enumerate(as_list(section)):
            if isinstance(step, dict):
                yield f"{stage}[{index}]" if several else stage, kind, step


def _resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Makes paths absolute where they name something beside the recipe, so that any stage can open them."""
    data = recipe.data.model_dump()
    for name in ("train", "validation", "test"):
        if data[name] and (is_file(data[name]) or (folder / expanded(data[name])).exists()):
            data[name] = str((folder / expanded(data[name])).resolve())
    beside = (folder / expanded(recipe.model)).resolve()
    sections = {stage: _with_paths(recipe, stage, folder) for stage in KIND_OF_STAGE}
    return recipe.model_copy(
        update={
            **sections,
            "data": DataSection(**data),
            "model": str(beside) if "://" not in recipe.model and beside.exists() else recipe.model,
            "output": str((folder / expanded(recipe.output or f"runs/{recipe.name}")).resolve()),
        }
    )


def _with_paths(recipe: Recipe, stage: str, folder: Path) -> Any:
    """Returns the section of a stage with absolute paths in its methods' options."""
    section = getattr(recipe, stage)
    if section is None:
        return None
    found = [
        {**step, **{name: str((folder / expanded(path)).resolve()) for name, path in named_paths(options)}}
        for step, (_, options) in zip(as_list(section), recipe.steps(stage), strict=True)
    ]
    return found if isinstance(section, list) else found[0]


def file_format(source: str) -> str | None:
    """Returns `csv`, `tsv`, `jsonl`, `json` or `parquet` by a file's suffix, compressed or not; otherwise None."""
    match = DATA_FILE.search(source)
    return match and match[1].lower()


def is_file(source: str) -> bool:
    """Says whether a data source is meant as a file rather than as a data set of the hub."""
    return file_format(source) is not None


def expanded(path: str | Path) -> Path:
    """Returns a path with its leading `~` replaced by the home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)


__all__ = [
    "DATA_FILE",
    "KIND_OF_STAGE",
    "NO_METHOD",
    "STAGES",
    "DataSection",
    "ExportSection",
    "GateSection",
    "PackageSection",
    "Recipe",
    "Steps",
    "expanded",
    "file_format",
    "is_file",
    "load",
    "parse",
]
