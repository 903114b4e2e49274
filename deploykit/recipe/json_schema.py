"""The JSON Schema of a recipe, for editors: the sections, and the options of every method.

It is made of the same models that validate a recipe, so the two cannot differ. Cross-field checks, such as "one of
`keep` and `speedup`", are not in it.
"""

from typing import Any, Literal

from pydantic import BaseModel, create_model
from pydantic.json_schema import models_json_schema

from deploykit import methods
from deploykit.recipe import KIND_OF_STAGE, Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NULL = {"type": "null"}


def schema() -> dict[str, Any]:
    """Returns the schema; methods are imported for their options, so it needs the extra `train`.

    Raises:
        MissingExtraError: a method needs a package that is not installed.
    """
    models = {kind: [_method(kind, name) for name in methods.available(kind)] for kind in KIND_OF_STAGE.values()}
    every = [(model, "validation") for model in (Recipe, *(model for found in models.values() for model in found))]
    references, content = models_json_schema(every, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    definitions = content["$defs"]
    recipe = definitions.pop(references[Recipe, "validation"]["$ref"].rpartition("/")[2])
    for stage, kind in KIND_OF_STAGE.items():
        choices = [references[model, "validation"] for model in models[kind]]
        several = [{"type": "array", "minItems": 1, "items": {"anyOf": choices}}] if stage == "prune" else []
        section = recipe["properties"][stage]
        recipe["properties"][stage] = {"anyOf": [*choices, *several, NULL], "description": section["description"]}
    recipe["properties"]["task"]["enum"] = list(methods.available("task"))
    return {"$schema": DIALECT, **recipe, "title": "deploykit recipe", "$defs": definitions}


def _method(kind: str, name: str) -> type[BaseModel]:
    """Returns the options of a method with the key `method`, which names it."""
    options = methods.load(kind, name).Options
    method: Any = (Literal[name], ...)
    made: type[BaseModel] = create_model(f"{kind} {name}", __base__=options, __doc__=options.__doc__, method=method)
    return made
