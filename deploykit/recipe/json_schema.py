"""The JSON Schema of a recipe, for editors: the sections, and the options of every method.

It is generated from the pydantic models that validate a recipe. It lacks checks that compare fields, such as "one of
`keep` and `speedup`".
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
    """Returns the schema. It needs the extra `train`, because it imports all methods.

    Raises:
        MissingExtraError: a method needs a package that is not installed.
    """
    kinds = ("task", *KIND_OF_STAGE.values())
    models = {kind: [_method_model(kind, name) for name in methods.available(kind)] for kind in kinds}
    all_models = [(model, "validation") for model in (Recipe, *chain(*models.values()))]
    references, content = models_json_schema(all_models, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    definitions = content["$defs"]
    recipe = definitions.pop(references[Recipe, "validation"]["$ref"].rpartition("/")[2])
    for stage, kind in KIND_OF_STAGE.items():
        choices = [references[model, "validation"] for model in models[kind]]
        list_of_steps = [{"type": "array", "minItems": 1, "items": {"anyOf": choices}}] if stage == "prune" else []
        section = recipe["properties"][stage]
        recipe["properties"][stage] = {"anyOf": [*choices, *list_of_steps, NULL], "description": section["description"]}
    task_names = methods.available("task")
    recipe["properties"]["task"] = {
        "anyOf": [{"enum": list(task_names)}, *(references[model, "validation"] for model in models["task"])],
        "description": recipe["properties"]["task"]["description"],
    }
    description_of_role = {
        role: column.description for name in task_names for role, column in methods.load("task", name).COLUMNS.items()
    }
    definitions["DataSection"]["properties"] |= {
        role: {"type": ["string", "null"], "description": f"Column of {text}."}
        for role, text in description_of_role.items()
    }
    return {"$schema": DIALECT, **recipe, "title": "deploykit recipe", "$defs": definitions}


def _method_model(kind: str, name: str) -> type[BaseModel]:
    """Returns a pydantic model of the options of a method, with the key `method` whose only value is its name."""
    options = methods.load(kind, name).Options
    method: Any = (Literal[name], ...)
    model: type[BaseModel] = create_model(f"{kind} {name}", __base__=options, __doc__=options.__doc__, method=method)
    return model
