import numpy as np
import onnxruntime
import pytest

from deploykit import engines, hardware
from deploykit.artifact.execution import Execution
from deploykit.engines import onnxruntime as engine
from deploykit.errors import ModelError


def batch(ids, mask=None):
    ids = np.array(ids, dtype=np.int64)
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids) if mask is None else np.array(mask, dtype=np.int64),
        "token_type_ids": np.zeros_like(ids),
    }


@pytest.fixture
def graph(tmp_path, tiny_graph):
    return tmp_path / "model.onnx", tiny_graph(tmp_path / "model.onnx")


def test_a_missing_graph_is_an_error(tmp_path):
    with pytest.raises(Exception, match=r"nothing\.onnx.*"):
        engine.load(tmp_path / "nothing.onnx", Execution())


def test_a_batch_without_an_input_of_the_graph_is_an_error(graph):
    with pytest.raises(KeyError, match="attention_mask"):
        engine.load(graph[0], Execution()).run({"input_ids": np.zeros((1, 2), dtype=np.int64)})


def test_logits_are_those_of_the_graph_and_inputs_that_it_does_not_take_are_left_out(graph):
    file, weights = graph
    logits = engine.load(file, Execution()).run(batch([[2, 7, 3], [2, 9, 0]], [[1, 1, 1], [1, 1, 0]]))["logits"]
    assert (logits.shape, logits.dtype) == ((2, 2), np.float32)
    np.testing.assert_allclose(logits, [weights[[2, 7, 3]].sum(axis=0), weights[[2, 9]].sum(axis=0)], rtol=1e-6)


def test_one_graph_takes_every_size_of_batch(graph):
    session = engine.load(graph[0], Execution())
    for rows, tokens in ((1, 1), (5, 3), (2, 64)):
        assert session.run(batch(np.ones((rows, tokens))))["logits"].shape == (rows, 2)


def test_token_logits_keep_their_tokens(tmp_path, tiny_graph):
    weights = tiny_graph(tmp_path / "model.onnx", "token-classification", 3)
    logits = engine.load(tmp_path / "model.onnx", Execution()).run(batch([[2, 7, 3]]))["logits"]
    np.testing.assert_array_equal(logits, [weights[[2, 7, 3]]])


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_asked_for_and_do_not_spin(graph, threads):
    session = engine.load(graph[0], Execution(threads=threads))
    options = session._session.get_session_options()
    assert session.execution.threads == options.intra_op_num_threads == threads
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert session._session.get_providers() == ["CPUExecutionProvider"]


def test_the_folder_loads_it_by_name_and_it_names_its_version():
    module = engines.load("onnxruntime")
    assert module is engine
    assert module.KIND == "onnx"
    assert module.versions() == {"onnxruntime": onnxruntime.__version__}


@pytest.mark.parametrize(
    ("providers", "gpus", "expected"),
    [
        (["CPUExecutionProvider"], ["NVIDIA L4"], ("cpu",)),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], [], ("cpu",)),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], ["NVIDIA L4"], ("cpu", "cuda")),
    ],
)
def test_a_gpu_is_a_device_where_the_machine_and_the_library_have_one(providers, gpus, expected, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(hardware, "gpus", lambda: gpus)
    assert engine.devices() == expected


def test_a_device_that_is_not_there_is_an_error_and_not_the_cpu_instead(graph):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ModelError, match=r"has no CUDAExecutionProvider here\. It needs the extra `gpu`"):
        engine.load(graph[0], Execution(device="cuda"))
