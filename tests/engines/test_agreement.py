"""Engines that run one after the other in one thread, as the selection runs them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from deploykit import engines
from deploykit.artifact.execution import Execution
from deploykit.engines import torch as torch_engine
from deploykit.errors import EngineError

ROWS, TOKENS = 3, 7


def batch(rows=ROWS, tokens=TOKENS):
    ids = np.random.default_rng(0).integers(5, 100, (rows, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


IN_TURN = """
import json, sys
import numpy as np
from deploykit import engines
from deploykit.artifact.execution import Execution
ids = np.random.default_rng(0).integers(5, 100, (3, 7))
batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
answers = []
for name in ("onnxruntime", "openvino"):
    answers.append(engines.load(name).load(sys.argv[1], Execution(engine=name)).run(batch)["logits"].tolist())
small = np.full(4, 1e-40, np.float32)
print(json.dumps([*answers, float((small * np.float32(2)).max())]))
"""


@pytest.mark.parametrize("kind", ["bert", "mpnet", "gpt2", "llama"])
def test_openvino_answers_for_every_row_after_onnx_runtime_ran_in_the_same_thread(kind, exported_of):
    """In a process of its own: the first session of ONNX Runtime decides how its thread treats tiny numbers."""
    command = [sys.executable, "-c", IN_TURN, str(exported_of(kind) / "model.onnx")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second, tiny = json.loads(ended.stdout)
    assert (np.array(first).shape, np.array(second).shape) == ((ROWS, 2), (ROWS, 2))
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)
    assert tiny > 0  # the thread computes with them as it did before


def cut_off(file, rows):
    """Writes a graph whose answer has other rows than its batch: those of its first `rows` tokens."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.ones((110, 2), np.float32)
    constants = [numpy_helper.from_array(np.array([value]), name) for name, value in (("zero", 0), ("end", rows))]
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["tokens"]),
        helper.make_node("ReduceSum", ["tokens", "tokens_axis"], ["all"], keepdims=0),
        helper.make_node("Slice", ["all", "zero", "end", "zero"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cut off",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 2])],
        [
            *constants,
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([1]), "tokens_axis"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    return file


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("rows", [0, 1])
def test_an_answer_with_other_rows_than_the_batch_is_refused(name, rows, tmp_path):
    engine = engines.load(name).load(cut_off(tmp_path / "model.onnx", rows), Execution(engine=name))
    with pytest.raises(EngineError, match=rf"{name} answered {rows} rows of logits for a batch of 3.*another engine"):
        engine.run(batch())


def test_torch_refuses_it_too(tiny_encoder, monkeypatch):
    engine = torch_engine.TorchModel(tiny_encoder(), Execution(engine="torch"))
    monkeypatch.setattr(engine._model.classifier, "forward", lambda pooled: torch.zeros(1, 2))
    with pytest.raises(EngineError, match="torch answered 1 rows of logits for a batch of 3"):
        engine.run(batch())
