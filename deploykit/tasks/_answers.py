"""Answers to questions: reading the true ones from data, finding candidates in a window, and comparing two of them.

Two answers are compared as in the evaluation script of SQuAD 2.0 (Rajpurkar et al., 2018).
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
N_BEST = 20  # start tokens, and end tokens, of a window with the highest logits; each start is tried with each end
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)  # table for `str.translate`


def normalize_answer(answer: str) -> str:
    """Returns an answer in lower case, without punctuation, English articles and repeated white space."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(WITHOUT_PUNCTUATION)).split())


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """Returns 1.0 if an answer equals one of the true ones after normalization, otherwise 0.0.

    If there are no true answers, the empty answer is right.
    """
    return float(normalize_answer(answer) in {normalize_answer(text) for text in gold or ("",)})


def word_f1(answer: str, gold: Sequence[str]) -> float:
    """Returns the F1 of an answer's words, 0 to 1, against the true answer that matches best.

    If there are no true answers, it is compared with the empty answer.
    """
    words = normalize_answer(answer).split()
    return max(_f1(words, normalize_answer(text).split()) for text in gold or ("",))


def _f1(predicted: Sequence[str], true: Sequence[str]) -> float:
    """Returns the F1 of two lists of words, in any order; of two empty lists 1.0."""
    if not predicted or not true:
        return float(predicted == true)
    common = sum((Counter(predicted) & Counter(true)).values())
    return 2 * common / (len(predicted) + len(true))


def parse_answers(answers: Any) -> list[Any]:
    """Returns the answers of a row as a list of objects.

    Data sets of Hugging Face in the format of SQuAD have an object of lists instead, `text` and `answer_start`.

    Raises:
        ValueError: the value has neither form.
    """
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


def parse_answer(answer: Any, contexts: Sequence[str]) -> tuple[str, int, int]:
    """Returns the text of an answer, its character offset, and the index of the context that holds it.

    Raises:
        ValueError: the answer has no text or offset, or its context does not have this text at this offset.
    """
    text = answer.get("text") if isinstance(answer, Mapping) else None
    start = answer.get("start", answer.get("answer_start")) if isinstance(answer, Mapping) else None
    context = answer.get("context", 0) if isinstance(answer, Mapping) else 0
    if not isinstance(text, str) or not text.strip() or type(start) is not int or type(context) is not int:
        raise ValueError(f"the answer is {answer!r}, expected an object with text and start")
    if context not in range(len(contexts)):
        raise ValueError(f"the answer is {answer!r}, expected an object with text and start")
    found = contexts[context][start : start + len(text)] if start >= 0 else ""
    if found != text:
        raise ValueError(f"the answer {text!r} is not at offset {start} of the context, which has {found!r} there")
    return text, start, context


def likely_spans(
    start_logits: Array, end_logits: Array, offsets: Int64, text: str, max_tokens: int
) -> Iterator[tuple[float, int, int]]:
    """Yields the spans between the `N_BEST` starts and ends of a window: score, start and end.

    The score is the sum of the two logits. Start and end are character offsets in the text, the end exclusive.

    Args:
        start_logits: of the tokens of the context that the window shows, `(tokens,)`.
        end_logits: of the same tokens.
        offsets: character offsets of the tokens in `text`, `(tokens, 2)`. A span neither begins nor ends with a token
            that has no visible character, such as white space.
        text: the whole context.
        max_tokens: largest length of a span.
    """
    start_tokens, end_tokens = (
        [int(token) for token in np.argsort(-logits)[:N_BEST] if VISIBLE.search(text, *offsets[token])]
        for logits in (start_logits, end_logits)
    )
    for start in start_tokens:
        for end in end_tokens:
            if start <= end < start + max_tokens:
                yield float(start_logits[start] + end_logits[end]), int(offsets[start, 0]), int(offsets[end, 1])


def best_threshold(margins: Array, gains: Array) -> float:
    """Returns the threshold for "no answer" that gives the highest total F1.

    It lies midway between two margins, or 1 beyond the outermost if no question or all questions should be answered.

    Args:
        margins: score of "no answer" minus score of the best span of each question, `(questions,)`. A question is
            answered if its margin is at most the threshold.
        gains: F1 of each question if it is answered minus its F1 if it is not, `(questions,)`.
    """
    order = np.argsort(margins)
    total_gains = np.concatenate([[0.0], np.cumsum(gains[order])])  # of answering the first 0, 1, 2, ... questions
    best = int(total_gains.argmax())
    ordered = np.concatenate([margins.min(keepdims=True) - 2, margins[order], margins.max(keepdims=True) + 2])
    return float((ordered[best] + ordered[best + 1]) / 2)
