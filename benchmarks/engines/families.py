"""Makes a small model of each type, and takes it from a checkpoint to a graph that is served, for both transformers.

    python benchmarks/engines/families.py write CHECKPOINTS              # with one version
    python benchmarks/engines/families.py read CHECKPOINTS RESULT.json   # with either version

`write` saves models with random weights and what torch says of some batches with them; `read` opens them, compares,
exports, compares again and asks a packaged graph's engine. A row of the result is one type, one version that saved and
one that loaded. It takes some minutes and downloads nothing.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
import transformers

from deploykit import engines
from deploykit.artifact.execution import Execution
from deploykit.engines import input_names
from deploykit.errors import DeploykitError
from deploykit.graphs import export
from deploykit.modeling import checkpoint
from deploykit.modeling.architectures import is_known
from deploykit.modeling.surgery import TRANSFORMERS_4, KeptUnits, shapes, shrunk

Batch = Mapping[str, npt.NDArray[Any]]
VOCABULARY, PAD, BEGIN, END = 110, 1, 0, 2
SIZES = {
    **{"hidden_size": 32, "embedding_size": 32, "num_attention_heads": 4, "intermediate_size": 128},
    **{"num_hidden_layers": 2, "max_position_embeddings": 66, "vocab_size": VOCABULARY, "initializer_range": 0.1},
    **{"pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END, "decoder_start_token_id": PAD},
}
SEQ2SEQ = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "init_std": 0.1},
}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True}
LOCAL = {"local_attention": 8, "cls_token_id": BEGIN, "sep_token_id": END}
ROPE = (
    {"rope_theta": 500000.0}
    if TRANSFORMERS_4
    else {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}
)
TYPES: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in ("bert", "roberta", "xlm-roberta", "camembert", "electra", "albert", "mpnet", "ernie")},
    "distilbert": {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64},
    "deberta-v2": {**DEBERTA, "type_vocab_size": 0, "norm_rel_ebd": "layer_norm"},
    "modernbert": LOCAL,
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 66},
    "llama": {"num_key_value_heads": 2, **ROPE},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "t5": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    "marian": SEQ2SEQ,
    "bart": SEQ2SEQ,
}
TWO_STACKS = ("t5", "marian", "bart")  # as models that write a text after reading another
UNEVEN = ((0, 2, 3), range(64)), ((1,), range(128))
SHAPES = ((1, 1, "right"), (1, 7, "right"), (3, 12, "right"), (3, 12, "left"), (5, 40, "right"), (2, 64, "right"))


def build(kind: str, uneven: bool) -> Any:
    """Makes a model in memory; an uneven one keeps other heads and neurons in each layer."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **TYPES[kind]})
    auto_class = (
        transformers.AutoModelForSeq2SeqLM if kind in TWO_STACKS else transformers.AutoModelForSequenceClassification
    )
    model = auto_class.from_config(config, attn_implementation="eager").eval()
    if not uneven:
        return model
    kept = [
        (range(size.heads) if size.heads < 4 else heads, neurons)
        for size, (heads, neurons) in zip(shapes(model), UNEVEN * 2, strict=False)
    ]
    return shrunk(
        model,
        [
            KeptUnits(tuple(heads), tuple(neurons)[: size.neurons])
            for (heads, neurons), size in zip(kept, shapes(model), strict=True)
        ],
    )


def batches() -> Iterator[Batch]:
    """Makes padded batches of several shapes, with padding on either side."""
    rng = np.random.default_rng(0)
    for rows, tokens, side in SHAPES:
        lengths = np.array([tokens, *(tokens // 2 + row for row in range(1, rows))])
        mask = (np.arange(tokens) < np.minimum(lengths, tokens)[:, None]).astype(np.int64)
        mask = mask if side == "right" else mask[:, ::-1].copy()
        ids = np.where(mask == 1, rng.integers(5, VOCABULARY, (rows, tokens)), PAD)
        for row in range(rows):
            ids[row, np.flatnonzero(mask[row])[-1]] = END
        yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def by_torch(model: Any, batch: Batch) -> npt.NDArray[Any]:
    """Returns the logits of a model in memory."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items() if name in input_names(model)}
    if model.config.model_type in TWO_STACKS:
        tensors = {name: tensors[name] for name in ("input_ids", "attention_mask")}
        tensors["decoder_input_ids"] = tensors["input_ids"].flip(1)
    with torch.inference_mode():
        return np.asarray(model(**tensors).logits.numpy())


def by_graph(kind: str, folder: Path, batch: Batch) -> npt.NDArray[Any]:
    """Returns the logits of an exported model."""
    if kind not in TWO_STACKS:
        return engines.load("onnxruntime").load(folder / "model.onnx", Execution()).run(batch)["logits"]
    encoder, decoder = (onnxruntime.InferenceSession(folder / f"{part}_model.onnx") for part in ("encoder", "decoder"))
    (states,) = encoder.run(None, {name: batch[name] for name in ("input_ids", "attention_mask")})
    read = {"encoder_hidden_states": states, "encoder_attention_mask": batch["attention_mask"]}
    logits, *_ = decoder.run(None, {**read, "input_ids": batch["input_ids"][:, ::-1].copy()})
    return np.asarray(logits)


def write(target: Path) -> None:
    """Saves a model of each type, and one with uneven layers of those that can be pruned."""
    for kind in TYPES:
        for uneven in (False, True):
            if uneven and not is_known(build(kind, False).config):
                continue
            folder = target / f"{transformers.__version__}-{kind}{'-uneven' if uneven else ''}"
            folder.mkdir(parents=True)
            model = build(kind, uneven)
            checkpoint.save(model, folder)
            answers = {str(index): by_torch(model, batch) for index, batch in enumerate(batches())}
            np.savez(folder / "answers.npz", allow_pickle=False, **answers)


def read(folder: Path) -> dict[str, Any]:
    """Opens a model that either version saved, exports it, and says how far all of that moved its answers."""
    version, _, name = folder.name.partition("-")
    row = {"model": name, "saved": version, "loaded": transformers.__version__}
    try:
        model = checkpoint.load(folder)
        with np.load(folder / "answers.npz", allow_pickle=False) as stored:
            expected = [stored[str(index)] for index, _ in enumerate(batches())]
        moved = [_apart(by_torch(model, batch), answer) for batch, answer in zip(batches(), expected, strict=True)]
        row["load_difference"] = float(f"{max(moved):.1e}")
        with tempfile.TemporaryDirectory() as temporary:
            started = time.perf_counter()
            task = "text2text-generation" if model.config.model_type in TWO_STACKS else "text-classification"
            export.write_graph(model, Path(temporary), task, 18)
            row["export_s"] = round(time.perf_counter() - started, 1)
            row["nodes"] = sum(len(onnx.load(file).graph.node) for file in Path(temporary).glob("*.onnx"))
            served = [by_graph(model.config.model_type, Path(temporary), batch) for batch in batches()]
            apart = [_apart(one, by_torch(model, batch)) for one, batch in zip(served, batches(), strict=True)]
            row["parity"] = float(f"{max(apart):.1e}")
    except DeploykitError as error:
        row["refused"] = str(error).replace(str(folder), "the model")
    return row


def _apart(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.abs(one - other).max())


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        table = [read(folder) for folder in sorted(Path(sys.argv[2]).iterdir())]
        known = Path(sys.argv[3])
        rows = json.loads(known.read_text()) if known.is_file() else []
        kept = [row for row in rows if row["loaded"] != transformers.__version__]
        lines = ",\n".join(json.dumps(row) for row in [*kept, *table])
        known.write_text(f"[\n{lines}\n]\n")
        for row in table:
            print(*row.values())
