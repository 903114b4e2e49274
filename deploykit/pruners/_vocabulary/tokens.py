"""Reduces the vocabulary of a tokenizer so that the texts of a corpus are tokenized as before.

WordPiece, BPE and Unigram each choose the best among the available tokens. If all tokens that they chose are kept, and
none is added, they choose the same again. The longest match is still the longest (WordPiece), the first merge is still
the first (BPE), and only paths that are worse than the best are gone (Unigram).
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import tokenizers

from deploykit.errors import ModelError

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # how SentencePiece writes a byte
Json = dict[str, Any]  # a section of a tokenizer.json
NewIds = Mapping[str, int]  # new ids of the kept tokens, by token


def required_token_ids(backend: tokenizers.Tokenizer, used: Collection[int]) -> list[int]:
    """Returns the ids of the tokens that must be kept, ascending.

    Args:
        backend: the whole tokenizer.
        used: ids of the tokens of the corpus. Added and special tokens, the unknown token, single characters and bytes
            are kept, too, and the tokens that the algorithm needs to produce any of these.

    Raises:
        ModelError: the tokenizer is not WordPiece, BPE or Unigram, or is BPE with affixes.
    """
    model, vocabulary = _supported_model(backend), backend.get_vocab(with_added_tokens=True)
    kept = {*used, *backend.get_added_tokens_decoder()}
    kept |= {token_id for token, token_id in vocabulary.items() if _is_basic(token, model)}
    find_required, _ = ALGORITHMS[model["type"]]
    required = find_required(model, (cast(str, backend.id_to_token(token_id)) for token_id in kept))
    return sorted(kept | {vocabulary[token] for token in required})


def reduced_tokenizer(backend: tokenizers.Tokenizer, ids: Sequence[int]) -> tokenizers.Tokenizer:
    """Returns a tokenizer with fewer tokens.

    Args:
        backend: the whole tokenizer.
        ids: old ids of the kept tokens, among them all that `required_token_ids` names. New ids are 0, 1, and so on.

    Raises:
        ModelError: the tokens cannot be renumbered.
    """
    content, model = json.loads(backend.to_str()), _supported_model(backend)
    new_ids = {cast(str, backend.id_to_token(old)): new for new, old in enumerate(ids)}
    _, reduce_model = ALGORITHMS[model["type"]]
    changes = {
        "model": {**model, **reduce_model(model, new_ids)},
        "added_tokens": [{**token, "id": new_ids[token["content"]]} for token in content["added_tokens"]],
        "post_processor": _renumbered_processor(content["post_processor"], new_ids),
        "truncation": None,
        "padding": None,
    }
    small = tokenizers.Tokenizer.from_str(json.dumps({**content, **changes}))
    if small.get_vocab(with_added_tokens=True) != new_ids:
        raise ModelError("the added tokens of this tokenizer cannot be renumbered. Leave out the vocabulary step.")
    return small


def _supported_model(backend: tokenizers.Tokenizer) -> Json:
    """Returns the section `model` of a tokenizer; raises a ModelError if its algorithm is not supported."""
    model: Json = json.loads(backend.to_str())["model"]
    has_affixes = model["type"] == "BPE" and (model["continuing_subword_prefix"] or model["end_of_word_suffix"])
    if model["type"] not in ALGORITHMS or has_affixes:
        raise ModelError(
            f"the vocabulary of a {model['type']} tokenizer{' with affixes' if has_affixes else ''} cannot be pruned,"
            f" only those of {', '.join(ALGORITHMS)}. Leave out the vocabulary step."
        )
    return model


def _is_basic(token: str, model: Json) -> bool:
    """Says whether a token is a byte or a single character, with or without the prefix for the inside of a word."""
    prefix = model.get("continuing_subword_prefix") or ""
    return len(token.removeprefix(prefix)) == 1 or bool(BYTE_TOKEN.fullmatch(token))


def _required_by_wordpiece(model: Json, tokens: Iterable[str]) -> Iterator[str]:
    """Yields the unknown token, if the vocabulary has it."""
    if model["unk_token"] in model["vocab"]:
        yield model["unk_token"]


def _required_by_bpe(model: Json, tokens: Iterable[str]) -> Iterator[str]:
    """Yields the unknown token, and all intermediate tokens that BPE merges into one of the given tokens.

    The merges inside a token do not depend on the text around it, because a merge across its border would have led to
    another token.
    """
    yield from _required_by_wordpiece(model, tokens)
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    for token in tokens:
        parts, intermediates = list(token), []
        while merges := [(ranks[pair], index) for index, pair in enumerate(pairwise(parts)) if pair in ranks]:
            _, index = min(merges)  # the merge with the lowest rank comes first
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
            intermediates.append(parts[index])
        if len(parts) == 1:  # otherwise the token is not a result of merges, for example an added token
            yield from intermediates


def _required_by_unigram(model: Json, tokens: Iterable[str]) -> Iterator[str]:
    """Yields the unknown token, and the token with the lowest score, from which Unigram derives the unknown's score."""
    yield min(model["vocab"], key=lambda piece: piece[1])[0]
    if model["unk_id"] is not None:
        yield model["vocab"][model["unk_id"]][0]


def _reduced_wordpiece(model: Json, new_ids: NewIds) -> Json:
    """Returns the changed entries of the section `model` of WordPiece for the kept tokens."""
    return {"vocab": {token: new_ids[token] for token in model["vocab"] if token in new_ids}}


def _reduced_bpe(model: Json, new_ids: NewIds) -> Json:
    """Returns the changed entries of the section `model` of BPE for the kept tokens."""
    merges = [pair for pair in model["merges"] if all(token in new_ids for token in (*pair, "".join(pair)))]
    return {**_reduced_wordpiece(model, new_ids), "merges": merges}


def _reduced_unigram(model: Json, new_ids: NewIds) -> Json:
    """Returns the changed entries of the section `model` of Unigram for the kept tokens; ids are their positions."""
    unknown = model["unk_id"]
    return {
        "vocab": [piece for piece in model["vocab"] if piece[0] in new_ids],
        "unk_id": None if unknown is None else new_ids[model["vocab"][unknown][0]],
    }


FindRequired = Callable[[Json, Iterable[str]], Iterator[str]]
ReduceModel = Callable[[Json, NewIds], Json]
# For each algorithm, two functions of the section `model`. The first yields the tokens that it needs besides those to
# keep. The second returns the changed entries of the section.
ALGORITHMS: dict[str, tuple[FindRequired, ReduceModel]] = {
    "WordPiece": (_required_by_wordpiece, _reduced_wordpiece),
    "BPE": (_required_by_bpe, _reduced_bpe),
    "Unigram": (_required_by_unigram, _reduced_unigram),
}


def _renumbered_processor(processor: Json | None, new_ids: NewIds) -> Json | None:
    """Returns the section `post_processor`, which adds special tokens, with their new ids."""
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        return {**processor, "processors": [_renumbered_processor(part, new_ids) for part in processor["processors"]]}
    pairs = ((name, processor[name][0]) for name in ("sep", "cls") if name in processor)
    changed: Json = {name: [token, new_ids[token]] for name, token in pairs}
    special = {
        name: {**token, "ids": [new_ids[part] for part in token["tokens"]]}
        for name, token in processor.get("special_tokens", {}).items()
    }
    return {**processor, **changed, **({"special_tokens": special} if special else {})}
