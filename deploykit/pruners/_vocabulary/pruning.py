"""Removes tokens from a tokenizer and from a model, and verifies that the corpus is tokenized as before."""

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
from deploykit.modeling import checkpoint, surgery
from deploykit.modeling.architectures import POSITIONS_AFTER_PADDING
from deploykit.modeling.problem import Problem
from deploykit.pruners import Pruned
from deploykit.pruners._vocabulary.tokens import reduced_tokenizer, required_token_ids
from deploykit.pruners.vocabulary import Options

TEXTS_PER_CALL = 1024  # texts that are tokenized at once; bounds the memory for their encodings
FLOAT32_BYTES = 4
log = logging.getLogger(__name__)


def prune(model: torch.nn.Module, problem: Problem, options: Options, work: Path) -> Pruned:
    """Returns a copy of the model with a smaller vocabulary, the matching tokenizer, and how much was saved."""
    texts = [*problem.texts, *(sources.read_texts(str(options.corpus)) if options.corpus else ())]
    original = tokenizers.Tokenizer.from_str(problem.tokenizer.backend.to_str())
    original.no_truncation()
    ids = required_token_ids(original, used_token_ids(original, texts) | _fixed_token_ids(model, original))
    reduced = reduced_tokenizer(original, ids)
    require_same_tokens(original, reduced, texts)
    pruned = surgery.with_tokens(model, ids)
    new_ids = {old: new for new, old in enumerate(ids)}
    unknown_id = problem.tokenizer.unknown_id
    tokenizer = replace(
        problem.tokenizer,
        backend=reduced,
        pad_id=new_ids[problem.tokenizer.pad_id],
        unknown_id=None if unknown_id is None else new_ids[unknown_id],
    )
    saved = FLOAT32_BYTES * (checkpoint.count_parameters(model) - checkpoint.count_parameters(pruned))
    # The share of validation rows whose tokens are all kept, so that they are tokenized as before.
    encoded = problem.task.encode([row.input for row in problem.validation], problem.tokenizer, problem.spec)
    unchanged = np.mean([all(np.isin(window.encoding.ids, ids).all() for window in windows) for windows in encoded])
    counts = {"tokens": len(ids), "tokens_before": original.get_vocab_size(), "bytes_saved": saved, "texts": len(texts)}
    log.info("kept %(tokens)d of %(tokens_before)d tokens, which saves %(bytes_saved)d bytes", counts)
    return Pruned(pruned, {**counts, "validation_unchanged": float(unchanged)}, tokenizer, tuple(ids))


def used_token_ids(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> set[int]:
    """Returns the ids of all tokens of the texts, including special tokens."""
    encodings = (encoding for chunk in _chunks(texts) for encoding in backend.encode_batch(chunk))
    return {token_id for encoding in encodings for token_id in encoding.ids}


def require_same_tokens(original: tokenizers.Tokenizer, reduced: tokenizers.Tokenizer, texts: Sequence[str]) -> None:
    """Raises a ModelError if two tokenizers give different tokens for one of the texts."""
    for chunk in _chunks(texts):
        encodings = zip(original.encode_batch(chunk), reduced.encode_batch(chunk), strict=True)
        for text, (before, after) in zip(chunk, encodings, strict=True):
            if before.tokens != after.tokens:
                raise ModelError(
                    f"with the reduced vocabulary {text[:80]!r} is tokenized as {after.tokens[:20]}, not as"
                    f" {before.tokens[:20]}. Leave the text out, or the vocabulary step."
                )


def _fixed_token_ids(model: torch.nn.Module, original: tokenizers.Tokenizer) -> set[int]:
    """Returns the ids of tokens that must keep their meaning for the model.

    The model's configuration names some of them. If a model counts positions from its padding id, the ids up to this
    one are added, so that the padding id does not change.

    Raises:
        ModelError: the tokenizer has more tokens than the model.
    """
    loaded = cast(Any, model)
    tokens, embeddings = original.get_vocab_size(), loaded.get_input_embeddings().num_embeddings
    if tokens > embeddings:
        raise ModelError(f"the tokenizer has {tokens} tokens and the model {embeddings}: they do not belong together.")
    configured = surgery.configured_token_ids(model)
    fixed = {token_id for token_id in configured if original.id_to_token(token_id) is not None}
    if loaded.config.model_type in POSITIONS_AFTER_PADDING:
        fixed |= set(range(loaded.config.pad_token_id + 1))
    return fixed


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Splits texts into chunks of `TEXTS_PER_CALL`."""
    return (texts[start : start + TEXTS_PER_CALL] for start in range(0, len(texts), TEXTS_PER_CALL))
