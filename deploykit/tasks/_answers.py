"""How answers are read from data, found in a window, and compared.

They are compared as by the script of SQuAD 2.0 (Rajpurkar et al., 2018).
"""

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.tasks import Array, Int64
from deploykit.tasks._units import VISIBLE

ARTICLES = re.compile(r"\b(a|an|the)\b")
CONSIDERED_ENDS = 20  # best starts and ends of a window that are combined
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Returns an answer in lower case, without punctuation, English articles and repeated spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact(answer: str, gold: Sequence[str]) -> float:
    """Returns 1 if an answer is one of the right ones, and 0 otherwise; an empty one is right if there are none."""
    return float(normalized(answer) in {normalized(text) for text in gold or ("",)})


def f1(answer: str, gold: Sequence[str]) -> float:
    """Returns the F1 of an answer's words against the best-matching right answer, or against an empty one."""
    return max(_f1(normalized(answer).split(), normalized(text).split()) for text in gold or ("",))


def _f1(words: Sequence[str], right: Sequence[str]) -> float:
    if not words or not right:
        return float(words == right)
    common = sum((Counter(words) & Counter(right)).values())
    return 2 * common / (len(words) + len(right))


def answer_list(answers: Any) -> list[Any]:
    """Returns answers as a list of objects; SQuAD also has an object of lists."""
    if answers is None:
        return []
    if isinstance(answers, Mapping):
        starts = answers.get("answer_start", answers.get("start"))
        texts = answers.get("text")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise ValueError(f"answers is {answers!r}, expected lists `text` and `answer_start` of one length")
        return [{"text": text, "start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(answers, list):
        raise ValueError(f"answers is {answers!r}, expected a list of objects with text and start")
    return answers


def locate(answer: Any, contexts: Sequence[str]) -> tuple[str, int, int]:
    """Returns text, start and index of the context of an answer, whose offset is checked."""
    text = answer.get("text") if isinstance(answer, Mapping) else None
    start = answer.get("start", answer.get("answer_start")) if isinstance(answer, Mapping) else None
    place = answer.get("context", 0) if isinstance(answer, Mapping) else 0
    if not isinstance(text, str) or not text.strip() or type(start) is not int or type(place) is not int:
        raise ValueError(f"the answer is {answer!r}, expected an object with text and start")
    if place not in range(len(contexts)):
        raise ValueError(f"the answer is {answer!r}, expected an object with text and start")
    found = contexts[place][start : start + len(text)] if start >= 0 else ""
    if found != text:
        raise ValueError(f"the answer {text!r} is not at offset {start} of the context, which has {found!r} there")
    return text, start, place


def likely_spans(
    start_logits: Array, end_logits: Array, offsets: Int64, text: str, max_tokens: int
) -> Iterator[tuple[float, int, int]]:
    """Yields score, start and end of the spans between the likeliest starts and ends of a window.

    Args:
        start_logits: of the tokens of the text, `(tokens,)`.
        end_logits: of the same tokens.
        offsets: of the tokens, `(tokens, 2)`; a token that cannot be seen, such as white space, is no end of a span.
        text: that the offsets count.
        max_tokens: the largest length of a span.
    """
    first, last = (
        [int(token) for token in np.argsort(-logits)[:CONSIDERED_ENDS] if VISIBLE.search(text, *offsets[token])]
        for logits in (start_logits, end_logits)
    )
    for start in first:
        for end in last:
            if start <= end < start + max_tokens:
                yield float(start_logits[start] + end_logits[end]), int(offsets[start, 0]), int(offsets[end, 1])
