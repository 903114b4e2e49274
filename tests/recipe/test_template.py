import json

import pytest

from deploykit import methods, recipe
from deploykit.errors import InputError, MethodError, RecipeError, StorageError
from deploykit.recipe import json_schema, template

ANSWERS = {"name": "my-model", "task": "text-classification", "model": "package://this/model", "data": "train.jsonl"}


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("precious")
    with pytest.raises(InputError, match=r"recipe\.yaml exists\. Choose another name, or overwrite it with --force\."):
        template.write(file, ANSWERS)
    assert file.read_text() == "precious"


def test_an_unknown_task_is_refused(tmp_path):
    with pytest.raises(MethodError, match=r"no task is called 'text'.* There are: .*text-classification"):
        template.write(tmp_path / "recipe.yaml", {**ANSWERS, "task": "text"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["My Model", "a/b", "", "-x"])
def test_an_answer_that_makes_no_recipe_leaves_no_file_and_harms_none(name, force, tmp_path):
    file = tmp_path / "recipe.yaml"
    if force:
        file.write_text("precious")
    with pytest.raises(RecipeError, match=r"has 1 mistake:\n  - name: "):
        template.write(file, {**ANSWERS, "name": name}, force=force)
    assert [found.name for found in tmp_path.iterdir()] == (["recipe.yaml"] if force else [])
    assert not force or file.read_text() == "precious"


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises((StorageError, NotADirectoryError, FileExistsError)):
        template.write(tmp_path / "file" / "recipe.yaml", ANSWERS)


@pytest.mark.parametrize("task", methods.available("task"))
def test_a_written_recipe_is_valid_and_holds_the_answers(task, tmp_path):
    file = tmp_path / "new" / "recipe.yaml"
    template.write(file, {**ANSWERS, "task": task})
    found = recipe.load(file)
    assert (found.name, found.task_name, found.model) == ("my-model", task, "package://this/model")
    assert found.data.train == str(file.parent / "train.jsonl")
    assert [stage for stage in recipe.STAGES if getattr(found, stage) is None] == []
    assert sorted(path.name for path in file.parent.iterdir()) == ["recipe.schema.json", "recipe.yaml"]
    assert json.loads((file.parent / "recipe.schema.json").read_text()) == json_schema.schema()


def test_every_section_that_a_user_may_change_has_a_comment(tmp_path):
    template.write(tmp_path / "recipe.yaml", ANSWERS)
    text = (tmp_path / "recipe.yaml").read_text()
    assert text.startswith(
        "# yaml-language-server: $schema=recipe.schema.json\n# Try it with: deploykit run recipe.yaml --dry-run\n"
    )
    lines = text.splitlines()
    for section in ("model", "data", "train", "prune", "quantize", "gates"):
        (place,) = (index for index, line in enumerate(lines) if line.startswith(f"{section}:"))
        assert lines[place - 1].startswith("# ")


@pytest.mark.parametrize("key", ["name", "model", "data"])
@pytest.mark.parametrize("text", ["2024", "yes", "1e3", "null"])
def test_an_answer_is_text_whatever_yaml_would_read_in_it(key, text, tmp_path):
    template.write(tmp_path / "recipe.yaml", {**ANSWERS, key: text})
    found = recipe.load(tmp_path / "recipe.yaml")
    value = {"name": found.name, "model": found.model, "data": found.data.train}[key]
    assert value == text


@pytest.mark.parametrize("path", ["reviews, new.jsonl", "a: b.csv", "#1.csv", "it's.tsv", "{x}.jsonl", "größe 😀.csv"])
def test_a_path_may_hold_any_character(path, tmp_path):
    template.write(tmp_path / "recipe.yaml", {**ANSWERS, "data": path, "model": f"./{path}"})
    found = recipe.load(tmp_path / "recipe.yaml")
    assert found.data.train == str(tmp_path / path)
    assert found.model == f"./{path}"


def test_a_recipe_is_replaced_when_that_is_asked_for(tmp_path):
    template.write(tmp_path / "recipe.yaml", ANSWERS)
    template.write(tmp_path / "recipe.yaml", {**ANSWERS, "name": "other"}, force=True)
    assert recipe.load(tmp_path / "recipe.yaml").name == "other"


def test_every_answer_is_asked_for_once():
    assert sorted(question.key for question in template.QUESTIONS) == sorted(ANSWERS)
    assert all(
        name in question.text
        for question in template.QUESTIONS
        if question.key == "task"
        for name in methods.available("task")
    )


def test_the_heads_of_a_task_are_written_out(tmp_path):
    template.write(tmp_path / "r.yaml", {"name": "n", "task": "multi-task", "model": "m", "data": "d.jsonl"})
    loaded = recipe.load(tmp_path / "r.yaml")
    assert set(loaded.task["heads"]) == {"intent", "slots"}
    assert loaded.task_options() == methods.load("task", "multi-task").Options()
