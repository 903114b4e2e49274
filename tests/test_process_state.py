"""A run from Python leaves the process as it was: threads, loggers, warnings, environment, random numbers."""

import logging
import os
import random
import sys
import warnings

import numpy as np
import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils.logging import is_progress_bar_enabled

import deploykit
from deploykit import pipeline, process_state
from deploykit.artifact.execution import Execution
from deploykit.engines.torch import TorchModel
from deploykit.graphs import export, variants
from deploykit.modeling import base_model

pytestmark = [
    pytest.mark.usefixtures("few_rounds"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the exporter's tracer and its imports
]


def state():
    """Returns what a library may change behind its caller's back."""
    loggers = {name: found.level for name, found in logging.root.manager.loggerDict.items() if hasattr(found, "level")}
    return {
        "threads": torch.get_num_threads(),
        "levels": {"root": logging.root.level, **loggers},
        "handlers": list(logging.root.handlers),
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "bars": (is_progress_bar_enabled(), are_progress_bars_disabled()),
        "random": (random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    }


def same(before, after):
    after["levels"] = {name: after["levels"][name] for name in before["levels"]}  # libraries bring loggers of their own
    for name, value in before.items():
        assert after[name] == value, name


@pytest.fixture
def loggers():
    """The loggers that were turned down, at a level that the caller has chosen."""
    found = [logging.getLogger(name) for name in ("optimum", "transformers", "fusion_attention")]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.INFO)
    yield
    for logger, level in zip(found, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_run_leaves_the_process_as_it_was(tmp_path, tiny_recipe, loggers, threads):
    path = tiny_recipe(
        tmp_path,
        train={"method": "full", "epochs": 2, "learning_rate": 1e-3, "bf16": "on"},
        gates={"max_drop": 1.0, "cannot_tell": "accept"},
        quantize={"method": "dynamic"},
        package={"store": False},
    )
    recipe = deploykit.load_recipe(path)
    before = state()
    outcomes = pipeline.run(recipe)
    same(before, state())
    deploykit.verify(outcomes[-1].artifact.path)
    same(before, state())


@pytest.mark.parametrize("head", [{"method": "full", "epochs": 1}, None], ids=["trained", "as it is"])
def test_progress_bars_of_libraries_do_not_appear_in_a_run(tmp_path, tiny_recipe, capfd, head):
    assert is_progress_bar_enabled()
    pipeline.run(deploykit.load_recipe(tiny_recipe(tmp_path, train=head)), until="train")
    assert "%|" not in capfd.readouterr().err


@pytest.mark.parametrize(("variable", "hub_bars"), [(None, True), (None, False), (True, False), (False, True)])
def test_progress_bars_are_switched_off_and_restored_and_those_of_downloads_stay(monkeypatch, variable, hub_bars):
    hub_tqdm = sys.modules["huggingface_hub.utils.tqdm"]  # a class has the same name in the package
    monkeypatch.setattr(hub_tqdm, "HF_HUB_DISABLE_PROGRESS_BARS", variable)
    monkeypatch.setattr(hub_tqdm, "progress_bar_states", {"_global": hub_bars})
    with process_state.no_progress_bars():
        assert not is_progress_bar_enabled()
        assert are_progress_bars_disabled() != hub_bars
    assert is_progress_bar_enabled()
    assert are_progress_bars_disabled() != hub_bars


def test_a_run_that_fails_leaves_the_process_as_it_was(tmp_path, tiny_recipe, loggers, threads):
    train = {"method": "full", "epochs": 2, "learning_rate": 1e30, "max_grad_norm": 1e30}
    recipe = deploykit.load_recipe(tiny_recipe(tmp_path, train=train))
    before = state()
    with pytest.raises(deploykit.errors.ModelError):
        pipeline.run(recipe)
    same(before, state())


def test_opening_and_fusing_leave_levels_as_they_were(tmp_path, tiny_encoder, tiny_model, loggers):
    before = state()
    base = base_model.resolve(str(tiny_model(tmp_path / "base")))
    before["random"] = state()["random"]  # which the fixture has moved on
    export.write_graph(tiny_encoder(), tmp_path, "text-classification", 18)
    variants.write("fused", tmp_path / "model.onnx", tmp_path / "fused.onnx")
    base_model.open_base(base, "AutoModelForSequenceClassification", ("negative", "positive"), fine_tuned=True)
    after = state()
    assert after["levels"].items() >= before["levels"].items()
    assert after["environment"] == before["environment"]


@pytest.mark.parametrize("training", [False, True])
def test_the_engine_leaves_the_model_that_it_is_given_as_it_was(tiny_encoder, problem_of, training, threads):
    model, tokenizer = tiny_encoder().train(training), problem_of().tokenizer
    batch = tokenizer.collate(tokenizer.encode(["the film is great"]))
    exact = TorchModel(model, Execution(engine="torch", threads=1)).run(batch)["logits"]
    engine = TorchModel(model, Execution(engine="torch", precision="bfloat16", threads=1))
    rough = engine.run(batch)["logits"]
    assert torch.get_num_threads() == 3
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {module.training for module in model.modules()} == {training}
    np.testing.assert_array_equal(TorchModel(model, Execution(engine="torch", threads=1)).run(batch)["logits"], exact)
    np.testing.assert_allclose(rough, exact, atol=0.1)
    assert not np.array_equal(rough, exact)
