"""Explains the validation errors of a recipe."""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ValidationError

from deploykit.methods import did_you_mean


def explain(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[str]:
    """Yields a line for each mistake: its place, the problem and the value, or the key that was probably meant.

    Args:
        error: of pydantic.
        model: whose validation failed.
        prefix: where the model is in the recipe.
    """
    for mistake in error.errors():
        *section, key = mistake["loc"] or ("",)
        place = ".".join([*prefix, *map(str, mistake["loc"])])
        if mistake["type"] == "extra_forbidden":
            keys = [*(["method"] if prefix and not section else []), *_fields(model, section)]
            yield f"{place}: unknown key{did_you_mean(str(key), keys)}. Known: {', '.join(keys)}."
        elif mistake["type"] == "missing":
            yield f"{place}: is missing"
        else:
            message = mistake["msg"].removeprefix("Value error, ")
            value = "" if ", got " in message else f", got {mistake['input']!r}"
            yield f"{place}: {message}{value}"


def _fields(model: type[BaseModel], section: Sequence[int | str]) -> list[str]:
    for name in section:
        if name not in model.model_fields:  # a key of a mapping, whose value is the model
            continue
        annotation = model.model_fields[str(name)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(part for part in candidates if isinstance(part, type) and issubclass(part, BaseModel))
    return list(model.model_fields)
