"""A fine-tuned model keeps the order of its own labels, under the names of the data, down to the package."""

import json

import numpy as np
import pytest
from models import TASKS, VARIANTS

import deploykit
from deploykit import tasks
from deploykit.artifact import CONFIG, Artifact
from deploykit.errors import ModelError, RecipeError
from deploykit.inference.predictor import Predictor
from deploykit.modeling import checkpoint
from deploykit.modeling.output_labels import match_labels, reorder_outputs

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
HEADS = [(kind, task) for kind, task in VARIANTS if task in TASKS]


# names


def test_equal_sets_of_labels_keep_the_order_of_the_model():
    own = ["positive", "negative"]
    assert match_labels(own, ["negative", "positive"], {}, "m") == ("positive", "negative")


def test_a_map_renames_the_labels_of_the_model():
    names = {"LABEL_0": "positive", "LABEL_1": "negative"}
    own = ["LABEL_0", "LABEL_1"]
    assert match_labels(own, ["negative", "positive"], names, "m") == ("positive", "negative")
    assert match_labels(["LABEL_0", "neg"], ["neg", "pos"], {"LABEL_0": "pos"}, "m") == ("pos", "neg")


@pytest.mark.parametrize(
    ("own", "data", "names", "message"),
    [
        (
            ["LABEL_0", "LABEL_1"],
            ["neg", "pos"],
            {},
            r"m has the labels LABEL_0, LABEL_1, the data has neg, pos\. .*labels: {LABEL_0: ",
        ),
        (["neg", "pos", "neutral"], ["neg", "pos"], {}, r"Only the model has neutral"),
        (["neg", "pos"], ["neg", "pos", "neutral"], {}, r"Only the data has neutral"),
        (
            ["LABEL_0", "LABEL_1"],
            ["neg", "pos"],
            {"LABLE_0": "neg"},
            r"no label 'LABLE_0' \(did you mean 'LABEL_0'\?\)",
        ),
        (
            ["a", "b"],
            ["negative", "positive"],
            {"a": "negativ", "b": "positive"},
            r"'negativ' \(did you mean 'negative'\?\)",
        ),
        (["a", "b"], ["neg", "pos"], {"a": "neg", "b": "neg"}, r"several labels of the model become 'neg'"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_the_nearest_names(own, data, names, message):
    with pytest.raises(ModelError, match=message) as caught:
        match_labels(own, data, names, "m")
    assert caught.value.exit_code == 2


def test_the_tasks_say_which_orders_they_can_use():
    text, tokens = map(tasks.load, TASKS)
    assert text.label_order(["b", "a"]) == ("b", "a")
    assert tokens.label_order(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]) == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert tokens.label_order(["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]) == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def test_a_map_without_train_null_is_a_mistake(tmp_path, tiny_recipe):
    with pytest.raises(RecipeError, match=r"labels: renames the labels of a model that is not trained"):
        deploykit.load_recipe(tiny_recipe(tmp_path, labels={"LABEL_0": "negative"}))


def test_numbers_are_names_of_labels(tmp_path, tiny_recipe):
    recipe = deploykit.load_recipe(tiny_recipe(tmp_path, train=None, labels={"LABEL_0": 1}))
    assert recipe.labels == {"LABEL_0": "1"}


# outputs


@pytest.mark.parametrize(("kind", "task"), HEADS)
def test_outputs_are_put_into_another_order(kind, task, tiny_encoder, logits_of):
    model = tiny_encoder(kind, task)
    before, count = logits_of(model), len(model.config.id2label)
    order = [*range(1, count), 0]
    reorder_outputs(model, order)
    for one, other in zip(before, logits_of(model), strict=True):
        np.testing.assert_allclose(one[..., order], other, atol=1e-5)


# the whole path


def saved(model, folder, tokenizer_folder, names, order):
    """Saves a model whose outputs stand in another order, under other names."""
    reorder_outputs(model, order)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    checkpoint.save(model, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_folder / name).read_bytes())
    return str(folder)


CASES = [
    (TASKS[0], [1, 0], ["positive", "negative"], {}, ("positive", "negative")),
    (
        TASKS[0],
        [1, 0],
        ["LABEL_0", "LABEL_1"],
        {"LABEL_0": "positive", "LABEL_1": "negative"},
        ("positive", "negative"),
    ),
    (TASKS[1], [1, 2, 0], ["B-NAME", "I-NAME", "O"], {}, ("O", "B-NAME", "I-NAME")),
]


@pytest.mark.parametrize(("task", "order", "names", "renamed", "expected"), CASES, ids=["order", "names", "tags"])
def test_a_package_answers_with_the_names_of_the_data_in_the_order_of_the_model(
    tmp_path, task, order, names, renamed, expected, fitted, tokenizer_folder, tiny_recipe, dataset_of
):
    folder = tmp_path / "base"
    folder.mkdir()
    base = saved(fitted(task)[0], folder, tokenizer_folder, names, order)
    path = tiny_recipe(
        tmp_path,
        task,
        model=base,
        train=None,
        prune=None,
        labels=renamed,
        quantize={"method": "none"},
        package={"store": False},
    )
    package = deploykit.run(deploykit.load_recipe(path))[-1].artifact
    assert package.manifest.labels == expected
    assert json.loads(package.file(CONFIG).read_text())["id2label"] == {str(i): name for i, name in enumerate(expected)}
    first = tasks.load(task).METRICS[0]
    for step in package.manifest.history:
        assert step.metrics["test"][first].value > 0.9, step.stage
    deploykit.verify(package.path)
    predictor, rows = Predictor.load(Artifact.load(package.path), 1), dataset_of(task).test
    answers = predictor.answers([row.input for row in rows])
    if task == TASKS[0]:
        right = [answer.label == row.target for answer, row in zip(answers, rows, strict=True)]
    else:
        right = [
            [(e.start, e.end, e.label) for e in answer.entities] == [(s.start, s.end, s.label) for s in row.target]
            for answer, row in zip(answers, rows, strict=True)
        ]
    assert np.mean(right) > 0.9


def test_the_content_key_knows_the_map(tmp_path, tiny_recipe):
    from deploykit import pipeline

    keys = set()
    for names in ({}, {"negative": "positive", "positive": "negative"}):
        recipe = deploykit.load_recipe(tiny_recipe(tmp_path, train=None, labels=names))
        keys.add(pipeline.plan(recipe)[0].key)
    assert len(keys) == 2
