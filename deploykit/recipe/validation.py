"""Explains the validation errors of a recipe."""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ValidationError

from deploykit.methods import did_you_mean


def explain_errors(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[str]:
    """Yields a line for each mistake: its place, the problem and the value.

    For an unknown key the line names the key that was probably meant, and all known ones.

    Args:
        error: from the validation of `model`.
        model: the recipe, or the options of a method.
        prefix: the keys that lead to the model in the recipe; empty for the recipe itself.
    """
    for mistake in error.errors():
        *section, key = mistake["loc"] or ("",)
        place = ".".join([*prefix, *map(str, mistake["loc"])])
        if mistake["type"] == "extra_forbidden":
            # Options of a method stand beside the key `method`, which is no field of their model.
            keys = [*(["method"] if prefix and not section else []), *_known_keys(model, section)]
            yield f"{place}: unknown key{did_you_mean(str(key), keys)}. Known: {', '.join(keys)}."
        elif mistake["type"] == "missing":
            yield f"{place}: is missing"
        else:
            message = mistake["msg"].removeprefix("Value error, ")
            value = "" if ", got " in message else f", got {mistake['input']!r}"
            yield f"{place}: {message}{value}"


def _known_keys(model: type[BaseModel], section: Sequence[int | str]) -> list[str]:
    """Lists the keys of a section of a model.

    Args:
        model: that contains the section.
        section: the keys that lead from the model to the section. Where a field is a mapping of models, such as
            `dict[str, HeadOptions]`, a key of the mapping follows the name of the field.
    """
    for name in section:
        if name not in model.model_fields:  # a key of such a mapping
            continue
        annotation = model.model_fields[str(name)].annotation
        types = [annotation, *getattr(annotation, "__args__", ())]  # of `X | None` and `dict[str, X]`, X is an argument
        model = next(part for part in types if isinstance(part, type) and issubclass(part, BaseModel))
    return list(model.model_fields)
