from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import numpy as np
import pytest
from openvino import properties
from openvino.properties import hint

from deploykit import engines, hardware
from deploykit.artifact.execution import Execution
from deploykit.engines import openvino as engine


def batch(ids):
    ids = np.array(ids, dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@pytest.fixture
def graph(tmp_path, tiny_graph):
    return tmp_path / "model.onnx", tiny_graph(tmp_path / "model.onnx")


def test_a_missing_graph_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"nothing\.onnx"):
        engine.load(tmp_path / "nothing.onnx", Execution(engine="openvino"))


def test_logits_are_those_of_the_graph_at_every_size_of_batch(graph):
    file, weights = graph
    compiled = engine.load(file, Execution(engine="openvino"))
    for rows, tokens in ((1, 1), (5, 3), (2, 64), (1, 1)):
        ids = np.random.default_rng(0).integers(len(weights), size=(rows, tokens))
        logits = compiled.run(batch(ids))["logits"]
        assert (logits.shape, logits.dtype) == ((rows, 2), np.float32)
        np.testing.assert_allclose(logits, weights[ids].sum(axis=1), rtol=1e-5)


def test_an_answer_stays_as_it_was_when_the_next_one_comes(graph):
    file, weights = graph
    compiled = engine.load(file, Execution(engine="openvino"))
    first = compiled.run(batch([[2, 7, 3]]))["logits"]
    compiled.run(batch([[9, 9, 9]]))
    np.testing.assert_allclose(first, [weights[[2, 7, 3]].sum(axis=0)], rtol=1e-5)


def test_batches_are_padded_to_few_shapes_that_are_little_larger(graph):
    shape = engine.load(graph[0], Execution(engine="openvino")).shape
    shapes = {shape(rows, tokens) for tokens in range(1, 513) for rows in range(1, 65) if rows * tokens <= 1024}
    assert len(shapes) <= 205  # of 5,000
    for rows in range(1, 65):
        more, tokens = shape(rows, 8 * rows)
        assert rows <= more <= rows * 1.25
        assert 8 * rows <= tokens <= 8 * rows * 1.25
        assert shape(more, tokens) == (more, tokens)
    assert shape(100, 700) == (104, 704)


def test_streams_run_at_the_same_time_and_do_not_mix(graph):
    file, weights = graph
    compiled = engine.load(file, Execution(engine="openvino", streams=2))
    rows = np.random.default_rng(0).integers(len(weights), size=(200, 1, 9))
    with ThreadPoolExecutor(4) as pool:  # more callers than streams
        found = list(pool.map(lambda ids: compiled.run(batch(ids))["logits"], rows))
    np.testing.assert_allclose(np.concatenate(found), weights[rows[:, 0]].sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("precision", engine.PRECISIONS)
def test_precision_threads_and_streams_are_those_asked_for(graph, precision, monkeypatch):
    asked = {}
    core = engine.openvino.Core

    class Spy:
        def compile_model(self, model, device, settings):
            asked["compiled"] = core().compile_model(model, device, settings)
            return asked["compiled"]

    monkeypatch.setattr(engine.openvino, "Core", Spy)
    engine.load(graph[0], Execution(engine="openvino", precision=precision, threads=1, streams=2))
    compiled = asked["compiled"]
    assert compiled.get_property(properties.num_streams) == 2
    assert compiled.get_property(properties.inference_num_threads) == 2
    assert not compiled.get_property(hint.enable_cpu_pinning)
    if precision == "float32" or set(engine.PRECISIONS[precision]) & set(hardware.cpu_features()):
        assert compiled.get_property(hint.inference_precision) == engine.OPENVINO_TYPES[precision]


def test_the_folder_loads_it_by_name_and_it_names_its_version():
    module = engines.load("openvino")
    assert (module, module.KIND) == (engine, "onnx")
    assert version("openvino").startswith(module.versions()["openvino"].rsplit(".", 1)[0])
