"""What is wrong with a recipe, as lines that name the place and the nearest key that is known."""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ValidationError

from deploykit.methods import did_you_mean


def explain(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[str]:
    """Yields one line a mistake: its place, what is wrong there, and what was found.

    Args:
        error: of pydantic.
        model: what was to be made.
        prefix: names that the places begin with.
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
            found = "" if ", got " in message else f", got {mistake['input']!r}"
            yield f"{'.'.join(place)}: {message}{found}"


def _fields(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    for name in place:
        annotation = model.model_fields[str(name)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(found for found in candidates if isinstance(found, type) and issubclass(found, BaseModel))
    return list(model.model_fields)
