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
        place = (*prefix, *map(str, mistake["loc"]))
        if mistake["type"] == "extra_forbidden":
            inside = mistake["loc"][:-1]
            known = [*(["method"] if prefix and not inside else []), *_fields(model, inside)]
            hint = did_you_mean(place[-1], known)
            yield f"{'.'.join(place)}: unknown key{hint}. Known: {', '.join(known)}."
        elif mistake["type"] == "missing":
            yield f"{'.'.join(place)}: is missing"
        else:
            message = mistake["msg"].removeprefix("Value error, ")
            value = "" if ", got " in message else f", got {mistake['input']!r}"
            yield f"{'.'.join(place)}: {message}{value}"


def _fields(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    for name in place:
        annotation = model.model_fields[str(name)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(part for part in candidates if isinstance(part, type) and issubclass(part, BaseModel))
    return list(model.model_fields)
