"""Any recipe that validates comes back equal through YAML and JSON, and no unknown key gets in anywhere."""

import json
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from deploykit import methods, recipe
from deploykit.errors import RecipeError
from deploykit.recipe import KIND_OF_STAGE, Recipe, overrides

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True)
STAGES = {stage: methods.available(kind) for stage, kind in KIND_OF_STAGE.items()}
BOUNDS = {Ge: ("ge", 0), Gt: ("gt", 1), Le: ("le", 0), Lt: ("lt", -1)}


def numbers(kind, metadata):
    """Draws numbers within the bounds of a field."""
    bounds = {BOUNDS[type(bound)][0]: (bound, BOUNDS[type(bound)][1]) for bound in metadata if type(bound) in BOUNDS}
    low = next(((getattr(b, name), step) for name, (b, step) in bounds.items() if name in ("ge", "gt")), (0, 0))
    high = next(((getattr(b, name), step) for name, (b, step) in bounds.items() if name in ("le", "lt")), (10**6, 0))
    if kind is int:
        return st.integers(int(low[0]) + low[1], int(high[0]) + high[1])
    exclude = {"exclude_min": low[1] != 0, "exclude_max": high[1] != 0}
    return st.floats(float(low[0]), float(high[0]), allow_nan=False, **exclude)


def values(annotation, metadata=()):
    """Draws plain values of a type, as YAML would hold them."""
    if annotation is type(None):
        return st.none()
    if get_origin(annotation) in (Union, types.UnionType):
        return st.one_of(*[values(part, metadata) for part in get_args(annotation)])
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) is tuple:
        return st.lists(values(get_args(annotation)[0]), max_size=3, unique=True)
    if get_origin(annotation) is dict:
        return st.dictionaries(WORDS, WORDS, max_size=2)
    if annotation is bool:
        return st.booleans()
    if annotation in (int, float):
        return numbers(annotation, metadata)
    if annotation in (str, Path):
        return WORDS
    assert issubclass(annotation, BaseModel), annotation
    return mappings(annotation)


def mappings(model, **fixed):
    """Draws the content of a section: what it needs, and some of what it has defaults for."""
    free = {name: field for name, field in model.model_fields.items() if name not in fixed}
    drawn = {**{name: values(field.annotation, field.metadata) for name, field in free.items()}, **fixed}
    needed = {name for name, field in free.items() if field.is_required()} | set(fixed)
    return st.fixed_dictionaries(
        {name: drawn[name] for name in sorted(needed)},
        optional={name: strategy for name, strategy in drawn.items() if name not in needed},
    )


def stages(stage):
    return st.sampled_from(STAGES[stage]).flatmap(
        lambda name: mappings(methods.load(KIND_OF_STAGE[stage], name).Options, method=st.just(name))
    )


def tasks():
    return st.sampled_from(methods.available("task")).flatmap(
        lambda name: mappings(methods.load("task", name).Options, method=st.just(name))
    )


def data():
    """Draws files for splits mostly, since few tasks have heads with files of their own."""
    section = mappings(Recipe.model_fields["data"].annotation, train=WORDS)
    of_files = section.map(lambda content: {name: value for name, value in content.items() if type(value) is not dict})
    return st.one_of(of_files, of_files, of_files, section)


def contents():
    sections = {
        "name": NAMES,
        "data": data(),
        "task": st.sampled_from(methods.available("task")) | tasks(),
        "train": st.none() | stages("train"),
        "prune": st.none() | stages("prune") | st.lists(stages("prune"), min_size=1, max_size=2),
        "quantize": st.none() | stages("quantize"),
    }
    return mappings(Recipe, **sections)


def parsed(content, folder):
    try:
        return recipe.parse(content, folder)
    except RecipeError:  # what is drawn need not fit together: two targets, a part of an epoch too few
        assume(False)


@settings(deadline=None, max_examples=60)
@given(content=contents())
def test_a_recipe_comes_back_equal(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    first = parsed(content, folder)
    plain = first.model_dump(mode="json")
    for text, read in ((yaml.safe_dump(plain), yaml.safe_load), (json.dumps(plain), json.loads)):
        assert recipe.parse(read(text), folder) == first
    whole = recipe.parse(yaml.safe_load(yaml.safe_dump(first.resolved())), folder)
    assert whole.resolved() == first.resolved()
    for stage in KIND_OF_STAGE:
        if getattr(first, stage) is not None:
            assert whole.steps(stage) == first.steps(stage)


# Mappings whose keys are names: of labels, and of heads.
FREE_KEYS = {("labels",), ("task", "heads"), *(("data", split) for split in ("train", "validation", "test"))}


def places(content: Any, at=()):
    """Yields every mapping of a recipe whose keys are known, and where it stands."""
    if isinstance(content, dict) and at not in FREE_KEYS:
        yield at, content
        for name, value in content.items():
            yield from places(value, (*at, name))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from places(value, (*at, index))


@settings(deadline=None, max_examples=60)
@given(content=contents(), draw=st.data())
def test_an_unknown_key_is_refused_wherever_it_stands_with_the_nearest_known_one(tmp_path_factory, content, draw):
    folder = tmp_path_factory.getbasetemp()
    parsed(content, folder)
    content = json.loads(json.dumps(content))
    at, place = draw.draw(st.sampled_from([(at, place) for at, place in places(content) if place]))
    known = draw.draw(st.sampled_from(sorted(place)))
    wrong = f"{known}x"
    place[wrong] = place[known]
    with pytest.raises(
        RecipeError, match=rf"{re.escape(wrong)}: unknown key \(did you mean '\w+'\?\)\. Known: "
    ) as caught:
        recipe.parse(content, folder)
    (line,) = [line for line in str(caught.value).splitlines() if "unknown key" in line]
    assert known in line.partition("Known: ")[2].rstrip(".").split(", ")
    if len(at) > 1 and at[-1] == "distill":
        assert "method" not in line.partition("Known: ")[2].split(", ")


PLAIN = st.none() | st.booleans() | st.integers() | WORDS
KEYS = st.sampled_from(["a", "b_1", "_c"])  # few, so that paths often lead to what is there
TREES = st.dictionaries(KEYS, st.recursive(PLAIN, lambda inner: st.dictionaries(KEYS, inner, max_size=3)), max_size=3)


@given(content=TREES, path=st.lists(KEYS, min_size=1, max_size=3), value=PLAIN | st.lists(PLAIN, max_size=2))
def test_an_override_sets_its_key_and_nothing_else(content, path, value):
    changed = json.loads(json.dumps(content))
    overrides.apply_override(changed, f"{'.'.join(path)}={yaml.safe_dump(value)}")
    before, after = content, changed
    for name in path[:-1]:
        assert {**after, name: None} == {**before, name: None}
        before, after = before.get(name), after[name]
        before = before if isinstance(before, dict) else {}
    assert after == {**before, path[-1]: value}
