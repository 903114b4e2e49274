"""Reduces the vocabulary of a tokenizer such that the texts of a corpus are tokenized as before.

WordPiece, BPE and Unigram each choose the best among the available tokens. If all chosen tokens are kept and none is
added, they choose the same again: the longest match is still the longest (WordPiece), the first merge is still the
first (BPE), and only worse paths than the best have been removed (Unigram).
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import tokenizers

from deploykit.errors import ModelError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
Content = dict[str, Any]  # a part of a tokenizer.json
NewIds = Mapping[str, int]  # by token


def necessary(backend: tokenizers.Tokenizer, used: Collection[int]) -> list[int]:
    """Returns the ids of the tokens that must be kept, ascending.

    Args:
        backend: the whole tokenizer.
        used: ids of the tokens of the corpus. Added and special tokens, the unknown token, single characters and bytes
            are kept too, and the tokens that the algorithm needs to produce any of these.

    Raises:
        ModelError: the tokenizer is not WordPiece, BPE or Unigram.
    """
    model, vocabulary = _model(backend), backend.get_vocab(with_added_tokens=True)
    kept = {*used, *backend.get_added_tokens_decoder()}
    kept |= {number for token, number in vocabulary.items() if _is_basic(token, model)}
    needed = ALGORITHMS[model["type"]][0](model, (cast(str, backend.id_to_token(number)) for number in kept))
    return sorted(kept | {vocabulary[token] for token in needed})


def reduced(backend: tokenizers.Tokenizer, ids: Sequence[int]) -> tokenizers.Tokenizer:
    """Returns a tokenizer with only the tokens `ids`, renumbered in this order; they include all `necessary` ones.

    Raises:
        ModelError: the tokens cannot be renumbered.
    """
    content, model = json.loads(backend.to_str()), _model(backend)
    new_ids = {cast(str, backend.id_to_token(old)): new for new, old in enumerate(ids)}
    changes = {
        "model": {**model, **ALGORITHMS[model["type"]][1](model, new_ids)},
        "added_tokens": [{**token, "id": new_ids[token["content"]]} for token in content["added_tokens"]],
        "post_processor": _processor(content["post_processor"], new_ids),
        "truncation": None,
        "padding": None,
    }
    small = tokenizers.Tokenizer.from_str(json.dumps({**content, **changes}))
    if small.get_vocab(with_added_tokens=True) != new_ids:
        raise ModelError("the added tokens of this tokenizer cannot be renumbered. Leave out the vocabulary step.")
    return small


def _model(backend: tokenizers.Tokenizer) -> Content:
    model: Content = json.loads(backend.to_str())["model"]
    affixes = model["type"] == "BPE" and (model["continuing_subword_prefix"] or model["end_of_word_suffix"])
    if model["type"] not in ALGORITHMS or affixes:
        raise ModelError(
            f"the vocabulary of a {model['type']} tokenizer{' with affixes' if affixes else ''} cannot be pruned, only"
            f" those of {', '.join(ALGORITHMS)}. Leave out the vocabulary step."
        )
    return model


def _is_basic(token: str, model: Content) -> bool:
    """Says whether a token is a byte or a single character, with or without the prefix for the inside of a word."""
    return len(token.removeprefix(model.get("continuing_subword_prefix") or "")) == 1 or bool(BYTE.fullmatch(token))


def _needed_by_wordpiece(model: Content, tokens: Iterable[str]) -> Iterator[str]:
    if model["unk_token"] in model["vocab"]:
        yield model["unk_token"]


def _needed_by_bpe(model: Content, tokens: Iterable[str]) -> Iterator[str]:
    """Yields the unknown token, and all intermediate tokens that BPE merges into one of the given tokens.

    The merges inside a token do not depend on the text around it, because a merge across its border would have led to
    another token.
    """
    yield from _needed_by_wordpiece(model, tokens)
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    for token in tokens:
        parts, intermediates = list(token), []
        while merges := [(ranks[pair], index) for index, pair in enumerate(pairwise(parts)) if pair in ranks]:
            index = min(merges)[1]
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
            intermediates.append(parts[index])
        if len(parts) == 1:  # otherwise the token is not a result of merges, for example an added token
            yield from intermediates


def _needed_by_unigram(model: Content, tokens: Iterable[str]) -> Iterator[str]:
    """Yields the unknown token, and the token with the lowest score, from which Unigram derives the unknown's score."""
    yield min(model["vocab"], key=lambda piece: piece[1])[0]
    if model["unk_id"] is not None:
        yield model["vocab"][model["unk_id"]][0]


def _reduced_wordpiece(model: Content, new_ids: NewIds) -> Content:
    return {"vocab": {token: new_ids[token] for token in model["vocab"] if token in new_ids}}


def _reduced_bpe(model: Content, new_ids: NewIds) -> Content:
    merges = [pair for pair in model["merges"] if all(token in new_ids for token in (*pair, "".join(pair)))]
    return {**_reduced_wordpiece(model, new_ids), "merges": merges}


def _reduced_unigram(model: Content, new_ids: NewIds) -> Content:
    unknown = model["unk_id"]
    return {
        "vocab": [piece for piece in model["vocab"] if piece[0] in new_ids],
        "unk_id": None if unknown is None else new_ids[model["vocab"][unknown][0]],
    }


Needed = Callable[[Content, Iterable[str]], Iterator[str]]
# the tokens that an algorithm needs besides those to keep, and the changed parts of its model
ALGORITHMS: dict[str, tuple[Needed, Callable[[Content, NewIds], Content]]] = {
    "WordPiece": (_needed_by_wordpiece, _reduced_wordpiece),
    "BPE": (_needed_by_bpe, _reduced_bpe),
    "Unigram": (_needed_by_unigram, _reduced_unigram),
}


def _processor(processor: Content | None, new_ids: NewIds) -> Content | None:
    """Returns the post-processor, which adds special tokens, with their new ids."""
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        return {**processor, "processors": [_processor(part, new_ids) for part in processor["processors"]]}
    pairs = ((name, processor[name][0]) for name in ("sep", "cls") if name in processor)
    changed: Content = {name: [token, new_ids[token]] for name, token in pairs}
    special = {
        name: {**token, "ids": [new_ids[part] for part in token["tokens"]]}
        for name, token in processor.get("special_tokens", {}).items()
    }
    return {**processor, **changed, **({"special_tokens": special} if special else {})}
