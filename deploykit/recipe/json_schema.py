"""The JSON Schema of a recipe, for editors: the sections, and the options of every method.

It is generated from the models that validate a recipe. It lacks checks across fields, such as "one of `keep` and
`speedup`".
"""

from itertools import chain
from typing import Any, Literal

from pydantic import BaseModel, create_model
from pydantic.json_schema import models_json_schema

from deploykit import methods
from deploykit.recipe import KIND_OF_STAGE, Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NULL = {"type": "null"}


def schema() -> dict[str, Any]:
    """Returns the schema; needs the extra `train`, because it imports all methods.

    Raises:
        MissingExtraError: a method needs a package that is not installed.
    """
    kinds = ("task", *KIND_OF_STAGE.values())
    models = {kind: [_method(kind, name) for name in methods.available(kind)] for kind in kinds}
    every = [(model, "validation") for model in (Recipe, *chain(*models.values()))]
    references, content = models_json_schema(every, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    definitions = content["$defs"]
    recipe = definitions.pop(references[Recipe, "validation"]["$ref"].rpartition("/")[2])
    for stage, kind in KIND_OF_STAGE.items():
        choices = [references[model, "validation"] for model in models[kind]]
        several = [{"type": "array", "minItems": 1, "items": {"anyOf": choices}}] if stage == "prune" else []
        section = recipe["properties"][stage]
        recipe["properties"][stage] = {"anyOf": [*choices, *several, NULL], "description": section["description"]}
    names = methods.available("task")
    recipe["properties"]["task"] = {
        "anyOf": [{"enum": list(names)}, *(references[model, "validation"] for model in models["task"])],
        "description": recipe["properties"]["task"]["description"],
    }
    columns = {
        role: column.description for name in names for role, column in methods.load("task", name).COLUMNS.items()
    }
    definitions["DataSection"]["properties"] |= {
        role: {"type": ["string", "null"], "description": f"Column of {text}."} for role, text in columns.items()
    }
    return {"$schema": DIALECT, **recipe, "title": "deploykit recipe", "$defs": definitions}


def _method(kind: str, name: str) -> type[BaseModel]:
    """Returns the model of a method's options with the key `method`, whose value is the method's name."""
    options = methods.load(kind, name).Options
    method: Any = (Literal[name], ...)
    model: type[BaseModel] = create_model(f"{kind} {name}", __base__=options, __doc__=options.__doc__, method=method)
    return model
