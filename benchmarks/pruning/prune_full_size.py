"""Takes models of real size through every pruner: BERT-base and T5-small, with random weights.

The tests do the same with tiny models; this shows that nothing depends on that. For each model and pruner it
prints the seconds, the parameters before and after, and the largest difference of the logits after saving
and loading.

    python benchmarks/pruning/prune_full_size.py [--rows 32]
"""

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors

from deploykit import methods, pruners, tasks
from deploykit.modeling import checkpoint
from deploykit.modeling.problem import Problem, Row, collate, model_inputs
from deploykit.tasks import Example, Spec, TextInput, TextOptions
from deploykit.tokenizer import Features, Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MODELS: dict[str, tuple[type, Any]] = {
    "BERT-base": (transformers.BertForSequenceClassification, transformers.BertConfig(num_labels=2)),
    "T5-small": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(eos_token_id=3, decoder_start_token_id=0),
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {"layers": {"keep": 10}}  # of twelve, in both; other pruners as they come
TOLERANCE = 1e-4


def main() -> None:
    """Prunes each model in each way and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=32, help="texts to calibrate on")
    rows = parser.parse_args().rows
    print(f"{'model':<10} {'pruner':<11} {'seconds':>8} {'parameters':>12} {'after':>12} {'difference':>11}")
    for name, (kind, config) in MODELS.items():
        torch.manual_seed(0)
        model = kind(config).eval()
        problem = made_up(config.vocab_size, rows, writes=config.is_encoder_decoder)
        for pruner in methods.available("pruner"):
            method = pruners.load(pruner)
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                made = method.prune(model, problem, method.Options(**OPTIONS.get(pruner, {})), Path(folder))
                seconds = time.monotonic() - started
                worst = difference(made.model, made.tokenizer or problem.tokenizer, problem.texts, Path(folder))
            sizes = [checkpoint.count_parameters(found) for found in (model, made.model)]
            print(f"{name:<10} {pruner:<11} {seconds:>8.0f} {sizes[0]:>12,} {sizes[1]:>12,} {worst:>11.1e}", flush=True)
            if sizes[1] >= sizes[0] or not worst <= TOLERANCE:
                raise SystemExit(f"{pruner} did not make {name} smaller, or it changes when it is loaded")


def made_up(vocabulary: int, rows: int, *, writes: bool) -> Problem:
    """Returns texts of random words, a WordPiece tokenizer that knows them, and something to learn.

    Args:
        vocabulary: tokens of the tokenizer.
        rows: texts of the training split.
        writes: whether the target is the text itself, and not one of two labels.
    """
    words = ("".join(letters) for size in (3, 4) for letters in product(LETTERS, repeat=size))
    pieces = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    known = [*pieces, *islice(words, vocabulary - len(pieces))]
    backend = tokenizers.Tokenizer(models.WordPiece({token: i for i, token in enumerate(known)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(SPECIAL)
    tokenizer = Tokenizer(backend, pad_id=0, padding_side="right", unknown_id=1, max_tokens=128)
    random = np.random.default_rng(0)
    texts = tuple(" ".join(random.choice(known[len(pieces) :], size)) for size in random.integers(8, 32, rows))
    task, spec = tasks.load("text-classification"), Spec(("no", "yes"), TextOptions())
    examples = [Example(TextInput(text=text), spec.labels[index % 2]) for index, text in enumerate(texts)]
    problem = Problem.of(task, spec, tokenizer, examples, examples[:8], seed=0)
    if not writes:
        return problem
    return replace(
        problem, train=tuple(replace(row, targets={"labels": row.features.encoding.ids}) for row in problem.train)
    )


def difference(model: torch.nn.Module, tokenizer: Tokenizer, texts: tuple[str, ...], folder: Path) -> float:
    """Saves and loads a model; returns the largest difference of its logits."""
    checkpoint.save(model, folder)
    loaded = checkpoint.load(folder, attention=None)
    batch = collate(tokenizer, [Row(Features("", 0, found), found.ids) for found in tokenizer.encode(texts[:8])])
    with torch.inference_mode():
        one, other = (found.eval()(**model_inputs(found, batch)).logits for found in (model, loaded))
    return float((one - other).abs().max())


if __name__ == "__main__":
    main()
