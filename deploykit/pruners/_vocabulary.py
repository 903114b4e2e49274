"""A tokenizer with fewer tokens that cuts the same texts in the same way.

Greedy, merging and best-path tokenizers alike choose among what they know. When what they chose for a text
stays, and nothing comes that was not there before, they choose it again: the longest match is still the
longest, the first of the merges is still the first, and the best path has lost only worse ones.
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
Places = Mapping[str, int]  # tokens and their new numbers


def necessary(backend: tokenizers.Tokenizer, used: Collection[int]) -> list[int]:
    """Returns the tokens that must stay, ascending.

    Args:
        backend: the whole tokenizer.
        used: the tokens of the texts that are to be cut as before. To these come added and special tokens, that
            for the unknown, single characters and bytes, and what the model needs to arrive at all of them.

    Raises:
        ModelError: the model is of another kind than WordPiece, BPE or Unigram.
    """
    model, vocabulary = _model(backend), backend.get_vocab(with_added_tokens=True)
    stay = {*used, *backend.get_added_tokens_decoder()}
    stay |= {place for token, place in vocabulary.items() if _is_basic(token, model)}
    needs = KINDS[model["type"]][0](model, (cast(str, backend.id_to_token(place)) for place in stay))
    return sorted(stay | {vocabulary[token] for token in needs})


def reduced(backend: tokenizers.Tokenizer, ids: Sequence[int]) -> tokenizers.Tokenizer:
    """Returns a tokenizer of some of the tokens, numbered in the order given.

    Args:
        backend: the whole tokenizer.
        ids: of the tokens that stay; all `necessary` ones are among them.

    Raises:
        ModelError: the tokens cannot be numbered so.
    """
    content, model = json.loads(backend.to_str()), _model(backend)
    places = {cast(str, backend.id_to_token(old)): new for new, old in enumerate(ids)}
    changes = {
        "model": {**model, **KINDS[model["type"]][1](model, places)},
        "added_tokens": [{**token, "id": places[token["content"]]} for token in content["added_tokens"]],
        "post_processor": _processor(content["post_processor"], places),
        "truncation": None,
        "padding": None,
    }
    small = tokenizers.Tokenizer.from_str(json.dumps({**content, **changes}))
    if small.get_vocab(with_added_tokens=True) != places:
        raise ModelError("the added tokens of this tokenizer cannot be numbered anew. Leave out the vocabulary step.")
    return small


def _model(backend: tokenizers.Tokenizer) -> Content:
    model: Content = json.loads(backend.to_str())["model"]
    affixes = model["type"] == "BPE" and (model["continuing_subword_prefix"] or model["end_of_word_suffix"])
    if model["type"] not in KINDS or affixes:
        raise ModelError(
            f"the vocabulary of a {model['type']} tokenizer{' with affixes' if affixes else ''} cannot be pruned: known"
            f" are {', '.join(KINDS)}. Leave out the vocabulary step."
        )
    return model


def _is_basic(token: str, model: Content) -> bool:
    """Says whether a token is a character, one inside a word, or a byte."""
    return len(token.removeprefix(model.get("continuing_subword_prefix") or "")) == 1 or bool(BYTE.fullmatch(token))


def _unknown(model: Content, tokens: Iterable[str]) -> Iterator[str]:
    if model["unk_token"] in model["vocab"]:
        yield model["unk_token"]


def _intermediate(model: Content, tokens: Iterable[str]) -> Iterator[str]:
    """Yields the tokens that merging goes through on the way to others.

    What merges inside a token does not depend on the text around it: a merge across its border would have made
    another token.
    """
    yield from _unknown(model, tokens)
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    for token in tokens:
        parts, made = list(token), []
        while found := [(ranks[pair], index) for index, pair in enumerate(pairwise(parts)) if pair in ranks]:
            index = min(found)[1]
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
            made.append(parts[index])
        if len(parts) == 1:  # otherwise it is no result of merging
            yield from made


def _worst(model: Content, tokens: Iterable[str]) -> Iterator[str]:
    """Yields the unknown, and the token of the lowest score, from which the unknown's is reckoned."""
    yield min(model["vocab"], key=lambda piece: piece[1])[0]
    if model["unk_id"] is not None:
        yield model["vocab"][model["unk_id"]][0]


def _words(model: Content, places: Places) -> Content:
    return {"vocab": {token: places[token] for token in model["vocab"] if token in places}}


def _merges(model: Content, places: Places) -> Content:
    stay = [pair for pair in model["merges"] if all(token in places for token in (*pair, "".join(pair)))]
    return {**_words(model, places), "merges": stay}


def _pieces(model: Content, places: Places) -> Content:
    unknown = model["unk_id"]
    return {
        "vocab": [piece for piece in model["vocab"] if piece[0] in places],
        "unk_id": None if unknown is None else places[model["vocab"][unknown][0]],
    }


Needs = Callable[[Content, Iterable[str]], Iterator[str]]
KINDS: dict[str, tuple[Needs, Callable[[Content, Places], Content]]] = {
    "WordPiece": (_unknown, _words),
    "BPE": (_intermediate, _merges),
    "Unigram": (_worst, _pieces),
}


def _processor(found: Content | None, places: Places) -> Content | None:
    """Returns what adds special tokens, with their new numbers."""
    if found is None:
        return None
    if found["type"] == "Sequence":
        return {**found, "processors": [_processor(part, places) for part in found["processors"]]}
    changed: Content = {name: [found[name][0], places[found[name][0]]] for name in ("sep", "cls") if name in found}
    special = {
        name: {**token, "ids": [places[part] for part in token["tokens"]]}
        for name, token in found.get("special_tokens", {}).items()
    }
    return {**found, **changed, **({"special_tokens": special} if special else {})}
