"""Applies `--set key=value` to a recipe before it is validated."""

import re
from typing import Any

import yaml

from deploykit.errors import RecipeError

DEFAULT_METHODS = {"train": "full", "quantize": "dynamic"}  # of sections that a recipe leaves out


def apply_override(content: dict[str, Any], override: str) -> None:
    """Sets one value in `content`, which is changed, and adds the sections that it needs.

    Args:
        content: of the recipe's YAML file.
        override: `key=value`, with dots for nested keys and a number in brackets for a step of a list, such as
            `prune[0].keep=4`. The value is YAML.

    Raises:
        RecipeError: the override has another form, or there is no such step.
    """
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\[\d+\])?(\.[A-Za-z_]\w*)*", key):
        raise RecipeError(f"--set takes key=value with dots for nested keys, as in train.epochs=1; got {override!r}.")
    section: Any = content
    *parents, last = [int(name) if name.isdigit() else name for name in re.findall(r"\w+", key)]
    for name in parents:
        _check_step(section, name, override)
        if isinstance(section, dict) and not isinstance(section.get(name), (dict, list)):  # a name, null or missing
            method = section.get(name) if name == "task" else DEFAULT_METHODS.get(str(name))
            section[name] = {"method": method} if method else {}
        section = section[name]
    _check_step(section, last, override)
    try:
        section[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value of --set {override!r} is not YAML: {error}") from error


def _check_step(section: Any, name: int | str, override: str) -> None:
    """Raises RecipeError if the section is a list of steps and `name` is not the index of one of them."""
    if isinstance(section, list) and name not in range(len(section)):
        found = f"a list of {len(section)} steps"
        raise RecipeError(f"--set {override!r} is about {found}: name one by its number, as in prune[0].keep=1.")
