from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from deploykit import tasks
from deploykit.errors import DataError
from deploykit.evaluation import metrics
from deploykit.evaluation.metrics import Outcomes
from deploykit.tasks import IGNORE_INDEX, Span, Spec, are_same

HEADS = {
    "mood": {"method": "text-classification", "columns": {"label": "mood"}},
    "topics": {"method": "multi-label-classification", "columns": {"labels": "topics"}},
    "stars": {"method": "regression", "columns": {"score": "stars"}},
    "names": {"method": "token-classification"},
}
ROWS = (
    {"text": "anna is happy", "mood": "good", "topics": ["people"], "stars": 5},
    {"text": "the plot is weak", "mood": "bad", "topics": ["film", "people"], "stars": 1.5},
    {"tokens": ["anna", "and", "london"], "tags": ["B-PERSON", "O", "B-PLACE"]},
    {"tokens": ["the", "end"], "tags": ["O", "O"], "mood": "bad"},
)
COLUMNS = {"text": "text", "text_pair": None, "tokens": "tokens", "head": None}


def load(**heads):
    task = tasks.load("multi-task")
    options = task.Options(heads=heads or HEADS)
    return task.bind(options), options


def read(task, rows=ROWS, columns=COLUMNS):
    return list(map(task.reader(rows, columns), rows))


def trained(task, options, examples):
    return Spec((), task.prepare(examples, options))


def outputs_of(task, spec, features, seed=0):
    random, labels = np.random.default_rng(seed), task.output_labels(spec)
    return [
        {
            name: random.normal(
                size=[{"tokens": len(part), "labels": len(labels[name])}[axis] for axis in axes]
            ).astype(np.float32)
            for name, axes in task.OUTPUTS.items()
        }
        for part in features
    ]


def test_a_row_has_labels_of_the_heads_whose_columns_it_fills():
    task, _ = load()
    examples = read(task)
    assert [sorted(example.target) for example in examples] == [
        ["mood", "stars", "topics"],
        ["mood", "stars", "topics"],
        ["names"],
        ["mood", "names"],
    ]
    assert examples[3].input.text == "the end"  # the words are the text of the other heads, too
    assert task.example_labels(examples[2]) == ("names/PERSON", "names/PLACE")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, r"has labels of no head, expected those of mood \(mood\), topics \(topics\), stars"),
        ({"text": "a", "mood": ""}, "has labels of no head"),
        ({"text": "a", "mood": 1.5}, "the label is 1.5"),
        ({"text": "a", "mood": "good", "only": "names"}, r"has no 'tags', which the head 'names' reads"),
        ({"text": "a", "mood": "good", "only": "nothing"}, r"has labels of no head called 'nothing'"),
        ({"text": "", "mood": "good"}, "expected a text that is not empty"),
    ],
)
def test_wrong_rows_are_refused(row, message):
    task, _ = load()
    with pytest.raises(ValueError, match=message):
        read(task, [{"tokens": ["x"], **row}], {**COLUMNS, "head": "only"})


def test_the_column_head_restricts_a_row_to_one_head():
    task, _ = load()
    (example,) = read(task, [{**ROWS[0], "only": "stars"}], {**COLUMNS, "head": "only"})
    assert example.target == {"stars": 5.0}


def test_a_missing_text_is_named_as_a_column():
    task, _ = load()
    with pytest.raises(KeyError, match="text"):
        read(task, [{"mood": "good"}])


def test_heads_learn_their_labels_and_options():
    task, options = load()
    examples = read(task)
    learned = task.fit_scale(examples, task.prepare(examples, options))
    assert {name: head.labels for name, head in learned.heads.items()} == {
        "mood": ("bad", "good"),
        "topics": ("film", "people"),
        "stars": (),
        "names": ("O", "B-PERSON", "I-PERSON", "B-PLACE", "I-PLACE"),
    }
    assert learned.heads["stars"].options["mean"] == 3.25
    assert task.Options.model_validate(learned.model_dump(mode="json")) == learned
    assert task.output_labels(Spec((), learned))["stars/logits"] == ("score",)
    with pytest.raises(DataError, match=r"no training row has labels of the head topics \(topics\)"):
        task.prepare([examples[3], replace(examples[3], target={"mood": "good"})], options)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({}, "at least 1 item"),
        ({"a": {"method": "question-answering"}}, "'question-answering' cannot be a head"),
        ({"a": {"method": "no-task"}}, "'no-task' cannot be a head"),
        ({"a b": {"method": "regression"}}, "a head cannot be called 'a b'"),
        ({"tokens": {"method": "regression"}}, "a head cannot be called 'tokens'"),
        ({"entities": {"method": "regression"}}, "a head cannot be called 'entities'"),
        ({"a": {"method": "regression", "options": {"means": 1}}}, "Extra inputs are not permitted"),
        ({"a": {"method": "regression", "column": {}}}, "Extra inputs are not permitted"),
        ({"a": {"method": "regression", "columns": {"label": "x"}}}, "regression has no column 'label'.*score"),
    ],
)
def test_wrong_heads_are_refused(heads, message):
    with pytest.raises(ValidationError, match=message):
        tasks.load("multi-task").Options(heads=heads)


def test_a_head_without_labels_of_a_row_learns_nothing_from_it(tokenizer):
    torch = pytest.importorskip("torch")
    from deploykit.modeling.losses import LOSSES

    task, options = load()
    examples = read(task)
    spec = trained(task, options, examples)
    ((features,),) = task.encode([examples[2].input], tokenizer, spec)
    targets = task.targets(examples[2], features, spec)
    assert set(targets) == set(task.TARGETS)
    (outputs,) = outputs_of(task, spec, [features])
    for name, target in task.TARGETS.items():
        logits = torch.tensor(outputs[target.output])[None].requires_grad_()
        summed, count = LOSSES[target.loss](logits, torch.tensor(targets[name])[None], None, 0.0)
        assert (count > 0) == name.startswith("names/")
        summed.backward()
        assert bool(logits.grad.abs().sum() > 0) == name.startswith("names/")
        assert bool(torch.isfinite(logits.grad).all())
    assert (targets["mood/labels"] == IGNORE_INDEX).all()


def test_predictions_and_answers_are_those_of_each_head(tokenizer):
    task, options = load()
    examples = read(task)
    spec = trained(task, options, examples)
    (features,) = task.encode([examples[2].input], tokenizer, spec)
    outputs = outputs_of(task, spec, features)
    prediction = task.decode(outputs, features, examples[2].input, spec)
    answer = task.answer(prediction, features, examples[2].input, spec)
    for head, (own, own_spec) in task.subtasks(spec).items():
        arrays = [{"logits": output[f"{head}/logits"]} for output in outputs]
        alone = own.decode(arrays, features, examples[2].input, own_spec)
        assert own.distance(alone, prediction[head]) == 0
        assert getattr(answer, head) == own.answer(alone, features, examples[2].input, own_spec)
    again = task.load(task.dump([prediction, prediction]))
    assert max(task.distance(prediction, row) for row in again) == 0
    assert are_same(task.decide(prediction, spec), task.decide(again[0], spec))
    asked = task.answer(prediction, features, task.Input(text="x", heads=("mood",)), spec)
    assert asked.mood is not None
    assert asked.stars is asked.names is asked.topics is None
    assert set(task.record(asked)["answers"]) == {"mood"}
    with pytest.raises(ValidationError, match="'mood', 'topics', 'stars' or 'names'"):
        task.Input(text="x", heads=("moods",))


def test_the_first_metric_is_the_mean_of_the_heads_and_each_counts_its_own_rows(tokenizer):
    task, options = load()
    examples = read(task)
    spec = trained(task, options, examples)
    encoded = task.encode([row.input for row in examples], tokenizer, spec)
    predictions = [
        task.decode(outputs_of(task, spec, features, seed), features, row.input, spec)
        for seed, (row, features) in enumerate(zip(examples, encoded, strict=True))
    ]
    outcomes = Outcomes.of(task, spec, examples, predictions)
    figures = metrics.compute(task.METRICS, outcomes)
    firsts = [figures[f"{head}/{own.METRICS[0]}"] for head, (own, _) in task.subtasks(spec).items()]
    assert figures["mean_of_heads"] == pytest.approx(np.mean(firsts))
    mood, own_spec = task.subtasks(spec)["mood"]
    rows = [0, 1, 3]
    alone = Outcomes(
        mood, own_spec, [outcomes.gold[row]["mood"] for row in rows], [predictions[row]["mood"] for row in rows]
    )
    assert figures["mood/accuracy"] == metrics.compute(("accuracy",), alone)["accuracy"]
    weights = np.ones((1, len(examples)), dtype=np.int64)
    for name in ("mean_of_heads", "mood/accuracy", "names/entity_f1"):
        value = metrics.load(name).statistic(outcomes)(weights)
        assert value[0] == pytest.approx(figures[name], abs=1e-9)
    without = Outcomes.of(task, spec, examples[:2], predictions[:2])
    assert "names/entity_f1" not in metrics.compute_with_intervals(task.METRICS, without, 0)  # no row has its labels


def test_nan_in_any_head_is_no_small_difference():
    task, options = load()
    spec = trained(task, options, read(task))
    (first,) = [{"mood": np.zeros((1, 2)), "topics": np.zeros((1, 2)), "stars": np.zeros(1), "names": np.zeros((1, 5))}]
    for head, values in first.items():
        assert np.isnan(task.distance(first, {**first, head: values * np.nan})), head
    assert spec.labels == ()


def test_spans_in_a_text_that_joined_words_change_are_refused():
    spans = {"method": "token-classification", "columns": {"spans": "places"}}
    task, _ = load(names={"method": "token-classification"}, places=spans)
    row = {"tokens": ["we", ",", "a", "b"], "tags": ["O", "O", "O", "O"]}
    with pytest.raises(ValueError, match=r"has spans in the text 'we,a b', .* the head 'names' join to 'we , a b'"):
        read(task, [{**row, "text": "we,a b", "places": [{"start": 5, "end": 6, "label": "X"}]}])
    same = {**row, "text": "we , a b", "places": [{"start": 7, "end": 8, "label": "X"}]}
    assert read(task, [same])[0].target["places"] == (Span(7, 8, "X"),)


def test_an_empty_cell_of_a_list_of_labels_is_refused_unless_the_head_is_named():
    task, _ = load()
    row = {"text": "the plot", "mood": "good", "topics": ""}
    with pytest.raises(ValueError, match=r"has an empty 'topics': either no label of the head 'topics' applies, or"):
        read(task, [row])
    named = [{**row, "head": "topics"}, {**row, "head": "mood"}]
    assert [list(example.target) for example in read(task, named, {**COLUMNS, "head": "head"})] == [
        ["topics"],
        ["mood"],
    ]
    assert list(read(task, [{**row, "topics": []}])[0].target) == ["mood", "topics"]


def test_a_head_needs_two_labels():
    task, options = load(mood=HEADS["mood"])
    rows = read(task, [{"text": "a", "mood": "good"}, {"text": "b", "mood": "good"}])
    with pytest.raises(DataError, match=r"the head mood \(mood\) has fewer than two labels in the training rows"):
        task.prepare(rows, options)


@pytest.mark.parametrize("name", ["model_config", "model_dump", "_x", "copy", "json", "schema"])
def test_a_head_cannot_have_a_name_that_answers_cannot_have(name):
    with pytest.raises(ValueError, match=f"a head cannot be called '{name}'"):
        load(**{name: HEADS["mood"]})


def test_windows_are_an_option_of_the_whole_task():
    with pytest.raises(ValueError, match="all heads read the same windows"):
        load(mood={**HEADS["mood"], "options": {"max_windows": 2}})
