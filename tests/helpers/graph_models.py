"""Fixtures of graphs: encoders with uneven layers and their variants, an encoder and a decoder of a T5, rows for them.

A plugin of `conftest.py`. Layers keep 3 of 4 heads and 64 of 128 neurons, and 1 head and all neurons.
"""

from functools import cache

import numpy as np
import pytest

UNEVEN = ((0, 2, 3), range(64)), ((1,), range(128))
MATMULS = 6 * 2  # query, key, value, projection, up and down of two layers
HEADS = [3, 1]


def logits(graph, batches, engine="onnxruntime"):
    """Returns the logits of all batches, `(rows or tokens, labels)`."""
    from deploykit import engines
    from deploykit.artifact.execution import Execution

    opened = engines.load(engine).load(graph, Execution(engine=engine))
    found = [opened.run(batch)["logits"] for batch in batches]
    return np.concatenate([array.reshape(-1, array.shape[-1]) for array in found])


def signal_to_noise(graph, quantized, batches):
    """Returns the decibels between the logits of a graph and those of its quantized copy."""
    from deploykit.selection import sensitivity

    return sensitivity.decibels(sensitivity.damage(logits(graph, batches), logits(quantized, batches)))


@pytest.fixture(scope="session")
def uneven_graph(tiny_encoder, tmp_path_factory):
    """`uneven_graph(kind="bert", task=...) -> Path` of an exported graph."""
    from deploykit.modeling import surgery
    from deploykit.modeling.surgery import KeptUnits
    from deploykit.stages import exporting

    kept = [KeptUnits(heads, tuple(neurons)) for heads, neurons in UNEVEN]

    @cache
    def build(kind="bert", task="text-classification"):
        folder = tmp_path_factory.mktemp(f"uneven-{kind}")
        exporting.write_graph(surgery.shrunk(tiny_encoder(kind, task), kept), folder, task, 18)
        return folder / "model.onnx"

    return build


@pytest.fixture(scope="session")
def variant_graph(uneven_graph, tmp_path_factory):
    """`variant_graph(variant, kind="bert") -> Path` of a variant of `uneven_graph`."""
    from deploykit.graphs import variants

    @cache
    def build(variant, kind="bert"):
        target = tmp_path_factory.mktemp(f"{variant}-{kind}") / "model.onnx"
        variants.write(variant, uneven_graph(kind), target)
        return target

    return build


@pytest.fixture(params=[8, 7])
def weight_bits(request, monkeypatch):
    """Bits of int8 weights: 8 as on a CPU with VNNI, and 7 as on one without, where sums of products would overflow."""
    from deploykit import hardware

    if request.param == 8 and hardware.saturates_int8():
        pytest.skip("this CPU saturates, and would compute something else")
    features = {8: ("avx2", "avx_vnni"), 7: ("avx2", "avx512f")}[request.param]
    monkeypatch.setattr(hardware, "cpu_features", lambda: features)
    monkeypatch.setattr(hardware.platform, "machine", lambda: "x86_64")
    return request.param


@pytest.fixture(scope="session")
def padded(sentences, tokenizer):
    """`padded(start, stop, side="right", rows=4) -> list of batches` of sentences."""

    def build(start, stop, side="right", rows=4):
        texts = [text for text, _ in sentences[start:stop]]
        return [
            tokenizer.collate(tokenizer.encode(texts[first : first + rows]), side)
            for first in range(0, len(texts), rows)
        ]

    return build


@pytest.fixture(scope="session")
def seq2seq_graphs(tmp_path_factory):
    """Paths of the encoder and the decoder of a T5 with two layers each, hidden size 32, without a cache."""
    import transformers

    folder = tmp_path_factory.mktemp("t5")
    sizes = {"vocab_size": 110, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0)
    export(transformers.T5ForConditionalGeneration, config, folder, "text2text-generation")
    return {"encoder": folder / "encoder_model.onnx", "decoder": folder / "decoder_model.onnx"}


@pytest.fixture(scope="session")
def gpt2_graph(tmp_path_factory):
    """Path of a GPT-2 with two layers, hidden size 32, without a cache."""
    import transformers

    folder = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(vocab_size=110, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    export(transformers.GPT2LMHeadModel, config, folder, "text-generation")
    return folder / "model.onnx"


def export(model, config, folder, task):
    """Exports a new model with random weights."""
    import torch

    from deploykit.stages import exporting

    torch.manual_seed(0)
    exporting.write_graph(model._from_config(config, attn_implementation="eager").eval(), folder, task, 18)


@pytest.fixture(scope="session")
def seq2seq_batches():
    """`seq2seq_batches(seed) -> two batches` for either file; each takes what it knows."""

    def build(seed):
        rng, batches = np.random.default_rng(seed), []
        for tokens in (7, 12):
            mask = (np.arange(tokens) < rng.integers(2, tokens + 1, (4, 1))).astype(np.int64)
            states = rng.normal(size=(4, tokens, 32)).astype(np.float32)
            batch = {"input_ids": rng.integers(1, 110, (4, tokens)), "attention_mask": mask}
            batches.append({**batch, "encoder_attention_mask": mask, "encoder_hidden_states": states})
        return batches

    return build
