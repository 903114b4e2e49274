"""Removes the tokens that a corpus does not use, with their rows of the embedding and of an output layer.

What stays are the tokens of the corpus, special and added tokens, single characters and bytes: texts of the
corpus are cut as before, which is verified, and others into smaller pieces. The layers stay as they are, so it
saves bytes and memory, and no time but that of an output layer.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import tokenizers
import torch

from deploykit.data import sources
from deploykit.errors import ModelError
from deploykit.methods import Options as Base
from deploykit.modeling import checkpoint, surgery
from deploykit.modeling.architectures import AFTER_PADDING
from deploykit.modeling.finetuning import Problem
from deploykit.pruners import Pruned
from deploykit.pruners._vocabulary import necessary, reduced
from deploykit.tokenizer import truncate

CHUNK = 1024  # texts that are tokenized at a time
FLOAT_BYTES = 4
log = logging.getLogger(__name__)


class Options(Base):
    """Which texts are to be read as before, besides those of the training split.

    `corpus` is a file with one text a line, or one with columns, every string of which counts.
    """

    corpus: Path | None = None


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a copy of the model that knows fewer tokens, its tokenizer, and what was saved."""
    texts = [*problem.texts, *(sources.texts(str(options.corpus)) if options.corpus else ())]
    whole = tokenizers.Tokenizer.from_str(problem.tokenizer.backend.to_str())
    whole.no_truncation()
    ids = necessary(whole, used(whole, texts) | _fixed(model, whole))
    backend = reduced(whole, ids)
    verify(whole, backend, texts)
    small = surgery.with_tokens(model, ids)
    truncate(backend, problem.tokenizer.max_tokens)
    places = {old: new for new, old in enumerate(ids)}
    unknown = problem.tokenizer.unknown_id
    tokenizer = replace(
        problem.tokenizer,
        backend=backend,
        pad_id=places[problem.tokenizer.pad_id],
        unknown_id=None if unknown is None else places[unknown],
    )
    saved = FLOAT_BYTES * (checkpoint.parameters(model) - checkpoint.parameters(small))
    unchanged = np.mean([np.isin(row.encoding.ids, ids).all() for row in problem.validation])
    counts = {"tokens": len(ids), "tokens_before": whole.get_vocab_size(), "bytes_saved": saved, "texts": len(texts)}
    log.info("%(tokens)d of %(tokens_before)d tokens stay, %(bytes_saved)d bytes are saved", counts)
    return Pruned(small, {**counts, "validation_unchanged": float(unchanged)}, tokenizer, tuple(ids))


def used(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> set[int]:
    """Returns the tokens that texts are cut into, special tokens included."""
    return {token for part in _chunks(texts) for found in backend.encode_batch(part) for token in found.ids}


def verify(whole: tokenizers.Tokenizer, small: tokenizers.Tokenizer, texts: Sequence[str]) -> None:
    """Compares the tokens of every text.

    Raises:
        ModelError: names the first text that is cut otherwise.
    """
    for part in _chunks(texts):
        for text, one, other in zip(part, whole.encode_batch(part), small.encode_batch(part), strict=True):
            if one.tokens != other.tokens:
                raise ModelError(
                    f"with fewer tokens {text[:80]!r} is cut into {other.tokens[:20]}, not into {one.tokens[:20]}."
                    " Leave the text out, or the vocabulary step."
                )


def _fixed(model: torch.nn.Module, whole: tokenizers.Tokenizer) -> set[int]:
    """Returns tokens that the model's configuration names, or from which it counts positions.

    Raises:
        ModelError: the tokenizer knows more tokens than the model.
    """
    loaded = cast(Any, model)
    size, known = whole.get_vocab_size(), loaded.get_input_embeddings().num_embeddings
    if size > known:
        raise ModelError(f"the tokenizer has {size} tokens and the model {known}: they do not belong together.")
    fixed = {token for token in surgery.token_ids(model) if whole.id_to_token(token) is not None}
    if loaded.config.model_type in AFTER_PADDING:
        fixed |= set(range(loaded.config.pad_token_id + 1))
    return fixed


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))
