"""How answers are compared, as the script of SQuAD 2.0 does (Rajpurkar et al., 2018)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Returns an answer in lower case, without punctuation, English articles and repeated spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact(answer: str, gold: Sequence[str]) -> float:
    """Returns 1 if an answer is one of the right ones, and 0 otherwise; an empty one is right if there are none."""
    return float(normalized(answer) in {normalized(text) for text in gold or ("",)})


def f1(answer: str, gold: Sequence[str]) -> float:
    """Returns the F1 of an answer's words against the nearest of the right answers."""
    return max(_f1(normalized(answer).split(), normalized(text).split()) for text in gold or ("",))


def _f1(words: Sequence[str], right: Sequence[str]) -> float:
    if not words or not right:
        return float(words == right)
    common = sum((Counter(words) & Counter(right)).values())
    return 2 * common / (len(words) + len(right))
