"""What every method must keep, found by listing the folders: adding a file enrols it."""

import inspect
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import get_type_hints

import numpy as np
import onnx
import pytest
import torch
from models import TASKS, VARIANTS
from pictures import PREPROCESSING
from pydantic import ValidationError

from deploykit import engines, methods, pruners, quantizers, tasks, trainers
from deploykit.artifact.execution import Execution
from deploykit.engines.torch import TorchModel
from deploykit.evaluation.metrics import Outcomes, compute
from deploykit.images import ImageTokenizer
from deploykit.images.preprocessing import Preprocessing
from deploykit.modeling import checkpoint
from deploykit.modeling.losses import LOSSES
from deploykit.modeling.options import FitOptions
from deploykit.modeling.problem import Row, collate, model_inputs
from deploykit.stages import exporting
from deploykit.tasks import IGNORE_INDEX, Spec, Target
from deploykit.tokenizer import Features

pytestmark = pytest.mark.usefixtures("one_thread")

PROTOCOLS = {
    "task": tasks.Task,
    "trainer": trainers.Trainer,
    "pruner": pruners.Pruner,
    "quantizer": quantizers.Quantizer,
    "engine": engines.EngineModule,
}
WITH_OPTIONS = ("task", "trainer", "pruner", "quantizer")
METHODS = [(kind, name) for kind in methods.METHOD_FOLDERS for name in methods.available(kind)]
SMALL = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "bf16": "off"}
PRUNED = [
    *(found for found in VARIANTS if found[1] == "text-classification"),
    *[("bert", "token-classification"), ("t5", "text2text-generation"), ("marian", "text2text-generation")],
]
QUICK = {"layers": {"keep": 2}}  # of options that may leave the model as it is
WRITING = SimpleNamespace(TARGETS={"labels": Target("logits", "cross_entropy", ("tokens",))})
CLASSIFYING = ("text-classification", "token-classification")


def per_method(*kinds):
    return pytest.mark.parametrize(
        ("kind", "name"), [found for found in METHODS if found[0] in kinds], ids=lambda value: value
    )


def quick(options):
    """The smallest amount of work that a method's options allow."""
    return options(**SMALL) if issubclass(options, FitOptions) else options()


def collate_validation(problem, side=None):
    """Eight validation texts as one batch."""
    return problem.tokenizer.collate(
        [row.features.encoding for row in problem.rows(problem.validation[:8])], padding_side=side
    )


def test_every_kind_has_a_protocol_and_at_least_one_method():
    assert set(PROTOCOLS) == set(methods.METHOD_FOLDERS) == {kind for kind, _ in METHODS}


# names, options, documentation


@per_method(*WITH_OPTIONS)
def test_unknown_options_are_refused(kind, name):
    options = methods.load(kind, name).Options
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        options(no_such_option=1)


@per_method(*WITH_OPTIONS)
def test_options_have_defaults_are_frozen_and_come_back_from_json(kind, name):
    options = methods.load(kind, name).Options
    found = options()
    assert options.model_validate_json(found.model_dump_json()) == found
    for field in options.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(found, field, getattr(found, field))


@per_method(*methods.METHOD_FOLDERS)
def test_a_method_provides_every_name_of_its_protocol(kind, name):
    module, protocol = methods.load(kind, name), PROTOCOLS[kind]
    names = {*get_type_hints(protocol), *(found for found in vars(protocol) if not found.startswith("_"))}
    assert names
    if kind == "task":  # what is optional must be there for the figures and routes that need it
        needed = {"items": "labels", "item_labels": "labels", "tensors": "tensors", "pipeline": "pipeline"}
        optional = {found for found, figure in needed.items() if figure in {*module.FIGURES, *module.CAPABILITIES}}
        members = {found for found in vars(tasks.OptionalMembers) if not found.startswith("_")}
        names |= optional | {found for found in members if hasattr(module, found)}
    if (kind, name) == ("quantizer", "auto"):
        names = {"Options"}  # it chooses among those that write
    for found in names:
        assert hasattr(module, found), f"{module.__name__} has no {found}"
        wanted = getattr(protocol, found, None)
        if inspect.isfunction(wanted):
            expected = [parameter for parameter in inspect.signature(wanted).parameters if parameter != "self"]
            assert list(inspect.signature(getattr(module, found)).parameters) == expected


@per_method(*methods.METHOD_FOLDERS)
def test_a_method_is_documented(kind, name):
    module = methods.load(kind, name)
    assert module.__doc__
    for found in vars(module).values():
        if getattr(found, "__module__", None) == module.__name__ and (
            inspect.isfunction(found) or inspect.isclass(found)
        ):
            assert found.__name__.startswith("_") or inspect.getdoc(found), f"{found.__qualname__} has no docstring"


# tasks


def examples_of(task):
    """The examples of a task, as it reads them, and what it knows of a model that learned them."""
    columns = {role: column.default for role, column in task.COLUMNS.items()}
    rows = list(map(task.reader(task.EXAMPLES, columns), task.EXAMPLES))
    options = task.Options()
    spec = Spec(task.label_names(rows), task.prepare(rows, options) if hasattr(task, "prepare") else options)
    assert task.label_order(spec.labels) == spec.labels
    return rows, spec


def outputs_of(task, spec, features, seed):
    """Random outputs of a model for some features."""
    random = np.random.default_rng(seed)
    own = task.output_labels(spec) if hasattr(task, "output_labels") else {}
    labels = {name: len(own.get(name, spec.labels)) or 1 for name in task.OUTPUTS}
    return [
        {
            name: random.normal(size=[{"tokens": len(part), "labels": labels[name]}[axis] for axis in axes]).astype(
                np.float32
            )
            for name, axes in task.OUTPUTS.items()
        }
        for part in features
    ]


@per_method("task")
def test_a_task_goes_from_rows_to_answers(kind, name, tokenizer):
    task = tasks.load(name)
    rows, spec = examples_of(task)
    if task.Input.FILES:
        tokenizer = ImageTokenizer(Preprocessing.of(PREPROCESSING), 17)
    encoded = task.encode([row.input for row in rows], tokenizer, spec)
    predictions, others = [], []
    for number, (row, features) in enumerate(zip(rows, encoded, strict=True)):
        assert isinstance(row.input, task.Input)
        assert features
        for part in features:
            targets = task.targets(row, part, spec)
            assert set(targets) == set(task.TARGETS)
            for target, (_, loss, axes) in task.TARGETS.items():
                sizes = {"tokens": len(part), "labels": len(spec.labels)}
                assert targets[target].shape == tuple(sizes[axis] for axis in axes if axis != "position")
                assert loss in LOSSES
        for seed, found in ((number, predictions), (number + 100, others)):
            found.append(task.decode(outputs_of(task, spec, features, seed), features, row.input, spec))
    again = task.load(task.dump(predictions))
    distances = [task.distance(*pair) for pair in zip(predictions, again, strict=True)]
    assert max(distances) < 1e-6
    assert max(task.distance(*pair) for pair in zip(predictions, others, strict=True)) > 0.01
    if hasattr(task, "tune"):
        spec = replace(spec, options=task.tune([task.gold(row, spec) for row in rows], predictions, spec))
    outcomes = Outcomes.of(task, spec, rows, predictions)
    assert all(np.isfinite(value) for value in compute(task.METRICS, outcomes).values())
    observed, labels = task.observe(predictions, spec), tasks.observed_labels(task, spec)
    assert len(observed.labels) == observed.units.sum() == len(observed.confidences) == len(observed.entropies)
    assert not len(observed.labels) or observed.labels.max() < len(labels)
    answers = [
        task.answer(prediction, features, row.input, spec)
        for prediction, features, row in zip(predictions, encoded, rows, strict=True)
    ]
    for answer, features, row in zip(answers, encoded, rows, strict=True):
        assert isinstance(answer, task.Answer)
        assert answer.tokens == sum(map(len, features))
        recorded = json.dumps(task.record(answer))
        assert not any(text in recorded for text in row.input.texts)
    decisions = [task.decide(prediction, spec) for prediction in predictions]
    for row, decision in zip(rows, decisions, strict=True):
        assert "changes" not in task.FIGURES or task.changes(row, decision, decision, spec) == []
    if "tensors" in task.CAPABILITIES:
        arrays = task.tensors(answers, spec)
        assert {len(array) for array in arrays.values()} == {len(answers)}
        none = task.tensors([], spec)
        assert {name: array.shape[1:] for name, array in none.items()} == {
            name: array.shape[1:] for name, array in arrays.items()
        }
    if "pipeline" in task.CAPABILITIES:
        assert json.dumps([task.pipeline(answer, None) for answer in answers])


@pytest.mark.parametrize("name", CLASSIFYING)
def test_logits_that_say_the_targets_are_decided_as_the_gold_is(name, tokenizer):
    task = tasks.load(name)
    rows, spec = examples_of(task)
    for row, features in zip(rows, task.encode([row.input for row in rows], tokenizer, spec), strict=True):
        (part,), gold = features, task.gold(row, spec)
        wanted = task.targets(row, part, spec)["labels"]
        assert gold.dtype == wanted.dtype == np.int64
        logits = np.eye(len(spec.labels), dtype=np.float32)[np.where(wanted == IGNORE_INDEX, 0, wanted)] * 9
        prediction = task.decode([{"logits": logits}], features, row.input, spec)
        assert task.probabilities(prediction, spec).shape == (len(gold), len(spec.labels))
        np.testing.assert_array_equal(task.decide(prediction, spec), gold)
        assert {item[0] for item in task.items(gold, spec)} == set(task.example_labels(row))
        assert {item[0] for item in task.items(gold, spec)} <= set(task.item_labels(spec))
        observed = task.observe([prediction], spec)
        assert observed.units.tolist() == [len(gold)]
        np.testing.assert_array_equal(observed.labels, gold)
        assert task.distance(prediction, -prediction) > 0.9


@per_method("task")
def test_a_task_can_be_opened_by_transformers_and_optimum_and_scaffolded(kind, name):
    import transformers

    from deploykit.quantizers import dynamic

    task = tasks.load(name)
    assert hasattr(transformers, task.AUTO_CLASS)
    if dynamic.HAS_OPTIMUM:
        import optimum.onnxruntime

        assert hasattr(optimum.onnxruntime, task.ORT_CLASS)
    assert all(column.description for column in task.COLUMNS.values())


# methods of the stages, on a tiny model


@pytest.mark.parametrize("task", TASKS)
@per_method("trainer")
def test_a_trainer_leaves_a_model_that_can_be_saved_and_predicts_the_same_again(
    kind, name, task, tiny_encoder, problem_of, tmp_path
):
    method, problem, model = trainers.load(name), problem_of(task), tiny_encoder(task=task)
    trained = method.train(model, problem, quick(method.Options), tmp_path)
    model, curve = trained.model, trained.curve
    judged = [point for point in curve if point["split"] == "validation"]
    assert len(judged) == (0 if method.NEEDS_FINE_TUNED else 2)
    assert all(np.isfinite(point["loss"]) for point in curve)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    checkpoint.save(model, tmp_path / "saved")
    again = TorchModel(checkpoint.load(tmp_path / "saved"), Execution(engine="torch"))
    batch = problem.tokenizer.collate([row.features.encoding for row in problem.rows(problem.validation)])
    one, other = (engine.run(batch)["logits"] for engine in (again, TorchModel(model, Execution(engine="torch"))))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("architecture", "task"), PRUNED)
@per_method("pruner")
def test_a_pruner_gives_a_smaller_model_that_can_be_saved(
    kind, name, architecture, task, tiny_encoder, problem_of, tmp_path
):
    method, problem, whole = pruners.load(name), problem_of(task, 40), tiny_encoder(architecture, task, layers=3)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    options = method.Options(**QUICK.get(name, {}))
    made = method.prune(whole, problem, options, tmp_path / "work")
    assert made.facts
    assert json.loads(json.dumps(made.facts)) == made.facts
    repeats = name == "layers" and architecture == "albert"  # its one layer stays, and runs less often
    assert repeats or checkpoint.count_parameters(made.model) < checkpoint.count_parameters(whole)
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.state_dict().items())

    tokenizer = made.tokenizer or problem.tokenizer
    encodings = tokenizer.encode(problem.texts[:8])
    rows = [
        Row(Features(text, 0, encoding), dict.fromkeys(problem.task.TARGETS, encoding.ids))
        for encoding, text in zip(encodings, problem.texts[:8], strict=True)
    ]
    batch = collate(replace(problem, task=WRITING, tokenizer=tokenizer), rows)
    checkpoint.save(made.model, tmp_path / "saved")
    loaded = checkpoint.load(tmp_path / "saved")
    with torch.inference_mode():
        one, other = (model.eval()(**model_inputs(model, batch)).logits for model in (made.model, loaded))
    np.testing.assert_allclose(one, other, atol=1e-5)  # attention is computed eagerly in one, and fused in the other
    if task in TASKS and architecture != "t5":
        exporting.write_graph(loaded, tmp_path, tasks.load(task).OPTIMUM_TASK, 18)
        graph = engines.load("onnxruntime").load(tmp_path / "model.onnx", Execution())
        fed = tokenizer.collate(encodings)
        real = fed["attention_mask"].astype(bool) if task == "token-classification" else slice(None)
        assert np.abs(other.numpy() - graph.run(fed)["logits"])[real].max() < 1e-4


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("kind", "name"), [("quantizer", name) for name in quantizers.writers()])
def test_a_quantizer_writes_a_graph_that_runs_and_leaves_its_source(
    kind, name, task, exported_of, problem_of, tmp_path
):
    method, source, target = quantizers.load(name), exported_of("bert", task) / "model.onnx", tmp_path / "model.onnx"
    before = source.read_bytes()
    batch = collate_validation(problem_of(task))
    facts = method.quantize(source, quick(method.Options), target, [batch])
    assert {"quantized", "float"} <= set(facts)
    assert method.PRECISION in ("float32", "float16", "int8", "int4")
    assert set(method.ENGINES) <= set(methods.available("engine"))
    assert source.read_bytes() == before
    assert (target.read_bytes() == before) == (not method.OPERATORS)
    assert target.stat().st_size < len(before) or not method.OPERATORS
    onnx.checker.check_model(onnx.load(target))
    one, other = (
        engines.load("onnxruntime").load(graph, Execution()).run(batch)["logits"] for graph in (source, target)
    )
    assert one.shape == other.shape
    assert np.isfinite(other).all()
    assert np.abs(one - other).mean() < 0.1 * np.abs(one).mean() + 0.05


@pytest.mark.parametrize("task", TASKS)
@per_method("engine")
def test_an_engine_computes_what_torch_computes(kind, name, task, tiny_encoder, exported_of, problem_of, tmp_path):
    module, model = engines.load(name), tiny_encoder("bert", task)
    if module.KIND == "checkpoint":
        checkpoint.save(model, tmp_path)
    execution = Execution(engine=name)
    engine = module.load(
        tmp_path if module.KIND == "checkpoint" else exported_of("bert", task) / "model.onnx", execution
    )
    assert engine.execution == execution
    assert "float32" in module.PRECISIONS
    assert all(isinstance(value, str) and value for value in module.versions().values())
    assert module.versions()
    for side in ("right", "left"):
        batch = collate_validation(problem_of(task), side)
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.numpy()
        outputs = engine.run(batch)
        assert set(outputs) == {"logits"}
        logits = outputs["logits"]
        assert (logits.shape, logits.dtype) == (expected.shape, np.float32)
        real = batch["attention_mask"].astype(bool) if logits.ndim == 3 else slice(None)
        assert np.abs(logits - expected)[real].max() < 1e-3
