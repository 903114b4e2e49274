import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from models import ENCODERS, TASKS, uneven
from onnx import numpy_helper

from deploykit import engines
from deploykit.artifact import Artifact, load_predictions
from deploykit.artifact.execution import Execution
from deploykit.engines.torch import TorchModel
from deploykit.errors import GateError, ModelError
from deploykit.graphs import export
from deploykit.modeling import checkpoint, surgery
from deploykit.modeling.surgery import KeptUnits
from deploykit.quantizers import static
from deploykit.stages import exporting, preflight

pytestmark = pytest.mark.usefixtures("one_thread")

KEPT = (KeptUnits(heads=(0, 2, 3), neurons=tuple(range(64))), KeptUnits(heads=(1,), neurons=tuple(range(128))))


@pytest.fixture
def job(tmp_path, tiny_encoder, sealed_checkpoint, job_of):
    """The stage of a pruned, uneven model."""
    return job_of("export", sealed_checkpoint(tmp_path / "prune", surgery.shrunk(tiny_encoder(), KEPT)))


def scaled(write, factor, name):
    """Writes the graph as it should be, and then scales one of its weights."""

    def broken(model, folder, *others):
        write(model, folder, *others)
        graph = onnx.load(folder / "model.onnx")
        (found,) = (weight for weight in graph.graph.initializer if weight.name.endswith(name))
        found.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(found) * np.float32(factor), found.name))
        onnx.save(graph, folder / "model.onnx")

    return broken


def batches():
    rng = np.random.default_rng(0)
    for rows, tokens in ((1, 1), (1, 7), (3, 64), (5, 2)):
        mask = np.ones((rows, tokens), dtype=np.int64)
        mask[-1, tokens // 2 + 1 :] = 0
        ids = rng.integers(5, 100, (rows, tokens))
        yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@pytest.mark.parametrize(
    "name", ["classifier.weight", "classifier.bias", "embeddings.LayerNorm.weight", "position_embeddings.weight"]
)
@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_a_graph_that_computes_something_else_is_refused(name, factor, job, monkeypatch):
    monkeypatch.setattr(exporting, "write_graph", scaled(exporting.write_graph, factor, name))
    message = (
        r"^the exported graph does not compute what torch computes: logits differ by \S+ \(batch \d.*\),"
        r" allowed 1e-03\. Try another export\.opset\.$"
    )
    with pytest.raises(GateError, match=message) as caught:
        exporting.export(job)
    assert caught.value.exit_code == 1
    assert sorted(path.name for path in job.target.parent.iterdir()) == []  # neither artifact nor draft


def test_a_tolerance_that_no_graph_keeps_is_a_broken_gate(job, job_of):
    with pytest.raises(GateError, match=r"allowed 1e-12\."):
        exporting.export(job_of("export", job.parent, export={"tolerance": 1e-12}))


@pytest.mark.parametrize("task", TASKS)
def test_the_artifact_holds_a_graph_with_the_parents_answers(task, tmp_path, tiny_encoder, sealed_checkpoint, job_of):
    small = surgery.shrunk(tiny_encoder(task=task), KEPT)
    parent = sealed_checkpoint(tmp_path / "prune", small, task)
    made = exporting.export(job_of("export", parent, task))
    found = Artifact.load(made.path)
    found.verify()
    manifest = found.manifest
    assert (manifest.kind, manifest.stage, manifest.execution.engine) == ("onnx", "export", "onnxruntime")
    assert manifest.labels == parent.manifest.labels
    assert manifest.step.parameters == checkpoint.count_parameters(small)
    assert manifest.step.bytes == found.file("model.onnx").stat().st_size
    assert [step.stage for step in manifest.history] == ["train", "export"]
    assert "model.safetensors" not in manifest.files
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "deploykit_arch.json"} <= set(manifest.files)
    assert manifest.own_details["tolerance"] == 1e-3
    assert len(manifest.own_details["parity"]) == 6
    assert max(manifest.own_details["parity"].values()) < 1e-4
    before, after = load_predictions(parent), load_predictions(found)
    assert set(after) == set(before) == {"validation", "test", "reference.validation", "reference.test"}
    for split in before:
        assert set(before[split]) == set(after[split]) == {"scores", "lengths"}
        for name in before[split]:
            np.testing.assert_allclose(before[split][name], after[split][name], atol=1e-4)
    assert manifest.step.metrics == parent.manifest.step.metrics


def test_a_model_that_does_not_fit_one_file_is_refused_before_it_is_exported(job, monkeypatch):
    monkeypatch.setattr(preflight, "MAX_GRAPH_BYTES", 1000)
    monkeypatch.setattr(exporting, "write_graph", lambda *_: pytest.fail("it was exported"))
    with pytest.raises(ModelError, match=r"GB of weights in float32, and graphs of 2 GB and more are not supported"):
        exporting.export(job)
    assert sorted(path.name for path in job.target.parent.iterdir()) == []


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ENCODERS)
def test_every_type_of_model_is_exported_with_parity_on_every_shape(kind, task, tiny_encoder, exported_of):
    session = engines.load("onnxruntime").load(exported_of(kind, task) / "model.onnx", Execution())
    reference = TorchModel(tiny_encoder(kind, task), Execution(engine="torch"))
    for batch in batches():
        real = batch["attention_mask"].astype(bool) if task == "token-classification" else slice(None)
        one, other = reference.run(batch)["logits"], session.run(batch)["logits"]
        assert one.shape == other.shape
        np.testing.assert_allclose(one[real], other[real], atol=1e-5)


@pytest.mark.parametrize("kind", [*ENCODERS, "gpt2", "llama"])
def test_uneven_layers_some_of_which_went_are_exported_with_parity(kind, tiny_encoder, tmp_path):
    whole = tiny_encoder(kind, layers=3)
    small = surgery.without_layers(surgery.shrunk(whole, uneven(whole)), [1])
    exporting.write_graph(small, tmp_path, "text-classification", 18)
    session = engines.load("onnxruntime").load(tmp_path / "model.onnx", Execution())
    for batch in batches():
        np.testing.assert_allclose(
            TorchModel(small, Execution(engine="torch")).run(batch)["logits"], session.run(batch)["logits"], atol=1e-5
        )
    weights = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert sum(numpy_helper.to_array(found).nbytes for found in weights) < 1.2 * 4 * checkpoint.count_parameters(small)


@pytest.mark.parametrize("kind", ["marian", "t5"])
def test_an_uneven_model_of_two_stacks_is_exported_with_parity(kind, tiny_encoder, tmp_path):
    whole = tiny_encoder(kind, "text2text-generation", layers=3)
    small = surgery.without_layers(surgery.shrunk(whole, uneven(whole)), [0, 4])
    exporting.write_graph(small, tmp_path, "text2text-generation", 18)
    encoder, decoder = (
        onnxruntime.InferenceSession(tmp_path / f"{name}_model.onnx") for name in ("encoder", "decoder")
    )
    for batch in batches():
        ids, mask = batch["input_ids"], batch["attention_mask"]
        (states,) = encoder.run(None, {"input_ids": ids, "attention_mask": mask})
        fed = {"input_ids": ids[:, ::-1].copy(), "encoder_hidden_states": states, "encoder_attention_mask": mask}
        logits, *_ = decoder.run(None, fed)
        with torch.inference_mode():
            given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, ::-1].copy()}
            expected = small(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_axes_are_dynamic_and_the_opset_is_the_one_asked_for(task, exported_of):
    model = onnx.load(exported_of("bert", task) / "model.onnx")
    assert {found.version for found in model.opset_import if found.domain == ""} == {18}
    shapes = {
        found.name: [axis.dim_param or axis.dim_value for axis in found.type.tensor_type.shape.dim]
        for found in (*model.graph.input, *model.graph.output)
    }
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert all(shapes[name] == ["batch_size", "sequence_length"] for name in names)
    assert shapes["logits"][0] == "batch_size"
    assert len(shapes["logits"]) == (3 if task == "token-classification" else 2)


@pytest.mark.parametrize("opset", [14, 17, 18])
def test_the_opset_can_be_chosen(opset, tiny_encoder, tmp_path):
    exporting.write_graph(tiny_encoder(), tmp_path, "text-classification", opset)
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == opset


# what the tracer would get wrong

OTHERS = {
    "bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    | {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    | {"type_vocab_size": 0, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "ernie": {},
    "gpt2": {},
    "llama": {"num_key_value_heads": 2},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 0, "sep_token_id": 3},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "t5": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4},
}


def test_every_type_that_is_said_to_work_is_tested():
    assert set(OTHERS) | set(ENCODERS) | {"marian"} == export.TESTED_MODEL_TYPES


def other_model(kind, spread=0.1):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 0}
    common = {"vocab_size": 100, "max_position_embeddings": 65, "initializer_range": spread}
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **ids, **common, **OTHERS[kind]})
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", OTHERS)
def test_types_without_a_row_of_their_own_are_exported_with_parity(kind, side, tmp_path):
    model = other_model(kind)
    export.write_graph(model, tmp_path, "text-classification", 18)
    session = engines.load("onnxruntime").load(tmp_path / "model.onnx", Execution())
    for batch in batches():
        mask = batch["attention_mask"][:, :: 1 if side == "right" else -1].copy()
        batch = {**batch, "attention_mask": mask, "input_ids": batch["input_ids"] * mask}
        for row, real in zip(batch["input_ids"], mask, strict=True):
            row[np.flatnonzero(real)[-1]] = 3  # the end, where BART and T5 read their answer
        expected = TorchModel(model, Execution(engine="torch")).run(batch)["logits"]
        np.testing.assert_allclose(session.run(batch)["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["ernie", "gpt2", "llama", "modernbert"])
def test_masks_survive_int8_on_both_engines(kind, tmp_path):
    """Beside int8 weights OpenVINO looks for dequantizations everywhere, and took a mask that was boolean for one."""
    export.write_graph(other_model(kind, spread=0.5), tmp_path, "text-classification", 18)
    static.quantize(tmp_path / "model.onnx", static.Options(), tmp_path / "int8.onnx", list(batches()))
    one, other = (
        engines.load(name).load(tmp_path / "int8.onnx", Execution(engine=name)) for name in ("onnxruntime", "openvino")
    )
    for batch in batches():
        expected = one.run(batch)["logits"]
        assert np.abs(other.run(batch)["logits"] - expected).max() < 0.1 * max(np.abs(expected).max(), 1)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_as_it_was_after_it_was_followed(training, tiny_encoder, tmp_path):
    model = tiny_encoder("llama", hidden_dropout_prob=0.5).train(training)
    forward, table = model.forward, transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    eager = table["eager"]
    export.write_graph(model, tmp_path, "text-classification", 18)
    assert {module.training for module in model.modules()} == {training}
    assert (model.forward, table["eager"]) == (forward, eager)
    with pytest.raises((OSError, RuntimeError)):
        export.write_graph(model, tmp_path / "missing", "text-classification", 18)
    assert model.forward == forward
    assert table["eager"] is eager


def test_dropout_is_off_in_the_graph_of_a_model_in_training(tiny_encoder, tmp_path):
    model = tiny_encoder(hidden_dropout_prob=0.9).train()
    export.write_graph(model, tmp_path, "text-classification", 18)
    session = engines.load("onnxruntime").load(tmp_path / "model.onnx", Execution())
    reference = TorchModel(model.eval(), Execution(engine="torch"))
    for batch in batches():
        np.testing.assert_allclose(reference.run(batch)["logits"], session.run(batch)["logits"], atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "llama"])
def test_a_graph_takes_what_a_batch_holds_and_no_default_of_the_forward_pass(kind, tiny_encoder, tmp_path):
    export.write_graph(tiny_encoder(kind), tmp_path, "text-classification", 18)
    names = [found.name for found in onnx.load(tmp_path / "model.onnx").graph.input]
    assert names == ["input_ids", "attention_mask", *(["token_type_ids"] if kind == "bert" else [])]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "albert"])
def test_heads_of_each_layer_are_constants_of_the_graph(kind, tiny_encoder, tmp_path):
    kept = [KeptUnits(heads, tuple(range(64))) for heads in ((0, 2, 3), (1,))][: 1 if kind == "albert" else 2]
    export.write_graph(surgery.shrunk(tiny_encoder(kind), kept), tmp_path, "text-classification", 18)
    from deploykit.graphs import matmuls, variants

    assert variants._head_counts(matmuls.load(tmp_path / "model.onnx")) == ([3, 3] if kind == "albert" else [3, 1])
