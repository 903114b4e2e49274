"""Answers a question with a span of a context, or says that the context has no answer.

An input may have several contexts, and a long context is read in overlapping windows, each together with the question.
The score of a span is its start logit plus its end logit. The score of "no answer" is the same sum at the first token.
The best span of all windows is the answer, unless the score of "no answer" exceeds its score by more than a threshold,
which is tuned on the validation split.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from deploykit import methods
from deploykit.tasks import Array, Arrays, Column, Example, Int64, Observations, Spec, Target
from deploykit.tasks import Input as BaseInput
from deploykit.tasks._answers import best_threshold, likely_spans, parse_answer, parse_answers, word_f1
from deploykit.tasks._classification import binary_entropies, read_text
from deploykit.tasks._units import trim_to_graphemes
from deploykit.tasks._unlabelled import example_labels, label_names, label_order  # noqa: F401  functions of this task
from deploykit.tokenizer import Features, Tokenizer, join_windows

AUTO_CLASS = "AutoModelForQuestionAnswering"
ORT_CLASS = "ORTModelForQuestionAnswering"
OPTIMUM_TASK = "question-answering"
OUTPUTS = {"start_logits": ("tokens",), "end_logits": ("tokens",)}
TARGETS = {
    "start": Target("start_logits", "cross_entropy", ("position",)),
    "end": Target("end_logits", "cross_entropy", ("position",)),
}
COLUMNS = {
    "question": Column("question", "the question"),
    "context": Column("context", "the text that may hold the answer, or a list of texts"),
    "answers": Column("answers", "the right answers, a list of `text` and `start`, or as in SQuAD; empty if none"),
}
EXAMPLES = (
    {
        "question": "who lives in london ?",
        "context": "anna lives in london .",
        "answers": [{"text": "anna", "start": 0}],
    },
    {"question": "where is peter ?", "context": "anna lives in london .", "answers": []},
)
METRICS = ("answer_f1", "exact_match")
FIGURES = frozenset({"changes"})
CAPABILITIES = frozenset({"pipeline"})
NO_ANSWER = ""  # the decision that there is no answer
NO_SPAN_MARGIN = 100.0  # by which "no answer" exceeds the score of a missing span, in contexts without visible text


class Options(methods.Options):
    """How questions and contexts are cut into windows, and which spans may be answers."""

    stride: int = Field(default=64, ge=1)
    """Number of tokens by which neighbouring windows of a context overlap."""
    max_windows: int = Field(default=64, ge=1)
    """Maximum number of windows of one input."""
    max_question_tokens: int = Field(default=64, ge=1)
    """Number of tokens to which a question is cut."""
    max_answer_tokens: int = Field(default=30, ge=1)
    """Largest length of an answer in tokens."""
    no_answer_threshold: float | None = None
    """By how much the score of "no answer" must exceed that of the best span; null: tuned on the validation split."""


class Input(BaseInput):
    """A question, and one text or several that may hold its answer."""

    question: str = Field(min_length=1)
    context: str = Field(default="", description="the text that may hold the answer")
    contexts: tuple[str, ...] = Field(default=(), description="several texts instead of `context`")

    @model_validator(mode="after")
    def _has_one_context(self) -> Self:
        if self.context and self.contexts:
            raise ValueError("has context and contexts, expected one of them")
        return self

    @property
    def all_contexts(self) -> tuple[str, ...]:
        """The contexts, whether the input has one or several."""
        return self.contexts or (self.context,)

    @property
    def texts(self) -> tuple[str, ...]:
        """The question and the contexts."""
        return (self.question, *self.all_contexts)

    def with_texts(self, change: Callable[[str], str]) -> Self:
        """Returns a copy with the question and the contexts changed."""
        contexts = tuple(map(change, self.contexts))
        return super().with_texts(change).model_copy(update={"contexts": contexts})


class Answer(methods.Frozen):
    """The prediction for one question."""

    answer: str | None = Field(description="the answer, null if there is none")
    score: float = Field(
        description="its probability among all spans and no answer; if it is null, 1 minus that of the best span"
    )
    start: int | None = Field(description="offset of its first character in the context")
    end: int | None = Field(description="offset after its last character")
    context: int | None = Field(description="which of several contexts holds it, counted from 0")
    tokens: int = Field(description="tokens that the model read")
    windows: int = Field(description="overlapping parts that the contexts were read in")
    truncated: bool = Field(description="whether the end of a context was cut off")


@dataclass(frozen=True)
class Prediction:
    """The best span of all windows, and how it compares with "no answer"."""

    text: str  # of the span; empty if no context has visible text
    score: float  # of the span: the sum of its start and end logit
    no_answer: float  # score of "no answer"
    probability: float  # of the span, among all spans and "no answer"
    context: int  # index of the context that holds the span
    start: int  # character offset in the context
    end: int  # exclusive


def reader(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
) -> Callable[[Mapping[str, Any]], Example]:
    """Returns a function that reads a question, its contexts and its true answers."""

    def read(row: Mapping[str, Any]) -> Example:
        question, contexts = read_text(row, str(columns["question"])), row[str(columns["context"])]
        contexts = [contexts] if isinstance(contexts, str) else contexts
        if not isinstance(contexts, list) or not contexts or not all(isinstance(part, str) for part in contexts):
            raise ValueError(f"the context is {contexts!r}, expected a text or a list of texts")
        answers = tuple(parse_answer(answer, contexts) for answer in parse_answers(row[str(columns["answers"])]))
        if len(contexts) == 1:
            return Example(Input(question=question, context=contexts[0]), answers)
        return Example(Input(question=question, contexts=tuple(contexts)), answers)

    return read


def observed_labels(spec: Spec) -> tuple[str, ...]:
    """Returns the two labels that `observe` counts: whether a question was answered."""
    return ("answered", "no answer")


def encode(inputs: Sequence[Input], tokenizer: Tokenizer, spec: Spec) -> list[list[Features]]:
    """Tokenizes each question with the windows of its contexts.

    `part` of the features is the index of the context, and the slice of the tokens that belong to it.
    """
    options: Options = spec.options
    encoded = []
    for item in inputs:
        windows: list[Features] = []
        for index, context in enumerate(item.all_contexts):
            windows_left = options.max_windows - len(windows)
            if windows_left == 0:  # the other contexts are not read, so the input is truncated
                windows[-1] = replace(windows[-1], encoding=replace(windows[-1].encoding, truncated=True))
                break
            windows += tokenizer.paired_windows(
                item.question, context, index, windows_left, options.stride, options.max_question_tokens
            )
        encoded.append(windows)
    return encoded


def targets(example: Example, features: Features, spec: Spec) -> dict[str, Int64]:
    """Returns the indices of the first and last token of the first true answer, of shape `()`.

    Both are 0, the index of the first token, if there is no answer or the window does not show all of it.
    """
    context, tokens = features.part
    offsets = features.encoding.offsets[tokens]
    first, last = 0, 0
    for text, start, answer_context in example.target[:1]:
        end = start + len(text)
        inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
        shows_start = answer_context == context and len(inside) and offsets[inside[0], 0] <= start
        if shows_start and offsets[inside[-1], 1] >= end:
            first, last = tokens.start + int(inside[0]), tokens.start + int(inside[-1])
    return {"start": np.array(first), "end": np.array(last)}


def decode(outputs: Sequence[Arrays], features: Sequence[Features], item: Input, spec: Spec) -> Prediction:
    """Returns the best span of all windows."""
    spans = dict[tuple[int, int, int], float]()  # best score in any window, by context, start and end
    no_answer_scores = []
    for arrays, window in zip(outputs, features, strict=True):
        context, tokens = window.part
        no_answer_scores.append(float(arrays["start_logits"][0] + arrays["end_logits"][0]))
        starts, ends = (arrays[name][tokens] for name in OUTPUTS)
        offsets, limit = window.encoding.offsets[tokens], spec.options.max_answer_tokens
        for score, start, end in likely_spans(starts, ends, offsets, item.all_contexts[context], limit):
            span = context, start, end
            spans[span] = max(score, spans.get(span, -np.inf))
    no_answer = min(no_answer_scores)  # of the window that is surest to show an answer: the others may lack it
    if not spans:
        return Prediction(NO_ANSWER, no_answer - NO_SPAN_MARGIN, no_answer, 0.0, 0, 0, 0)
    score, (context, start, end) = max((score, span) for span, score in spans.items())
    scores = np.array([no_answer, *spans.values()])
    probability = float(np.exp(score - scores.max()) / np.exp(scores - scores.max()).sum())
    start, end = trim_to_graphemes(item.all_contexts[context], start, end)
    return Prediction(item.all_contexts[context][start:end], score, no_answer, probability, context, start, end)


def tune(gold: Sequence[Any], predictions: Sequence[Prediction], spec: Spec) -> Options:
    """Returns options with the threshold for "no answer" that has the highest F1 on the validation split."""
    options: Options = spec.options
    if options.no_answer_threshold is not None:
        return options
    rows = [(prediction, texts) for prediction, texts in zip(predictions, gold, strict=True) if prediction.text]
    if not rows:  # no context has visible text
        return options
    margins = np.array([prediction.no_answer - prediction.score for prediction, _ in rows])
    f1_if_answered = np.array([word_f1(prediction.text, texts) for prediction, texts in rows])
    f1_if_not = np.array([float(not texts) for _, texts in rows])
    threshold = best_threshold(margins, f1_if_answered - f1_if_not)
    return options.model_copy(update={"no_answer_threshold": round(threshold, 4)})


def gold(example: Example, spec: Spec) -> tuple[str, ...]:
    """Returns the texts of the true answers, without duplicates; none if the question has no answer."""
    return tuple(dict.fromkeys(text for text, _, _ in example.target))


def decide(prediction: Prediction, spec: Spec) -> str:
    """Returns the text of the answer, or `NO_ANSWER`."""
    threshold = spec.options.no_answer_threshold or 0.0
    return NO_ANSWER if prediction.no_answer - prediction.score > threshold else prediction.text


def changes(example: Example, before: str, after: str, spec: Spec) -> list[dict[str, str]]:
    """Returns the question with its true answers and the ones before and after; nothing if these two are equal."""
    if before == after:
        return []
    true = " | ".join(gold(example, spec))
    return [{"text": example.input.question, "true": true, "before": before, "after": after}]


def distance(first: Prediction, second: Prediction) -> float:
    """Returns the absolute difference of the probabilities.

    If the spans differ, the distance is at least the amount by which the higher probability exceeds one half. Below one
    half another span may be nearly as probable, so that a small change can exchange the two.
    """
    difference = abs(first.probability - second.probability)
    if (first.context, first.start, first.end) == (second.context, second.start, second.end):
        return difference
    return max(difference, max(first.probability, second.probability) - 0.5)


def observe(predictions: Sequence[Prediction], spec: Spec) -> Observations:
    """Returns the probability of each best span; the label is 0 if the question was answered, otherwise 1."""
    unanswered = np.array([decide(prediction, spec) == NO_ANSWER for prediction in predictions], dtype=np.int64)
    probabilities = np.array([prediction.probability for prediction in predictions], dtype=np.float32)
    entropies = binary_entropies(probabilities)
    return Observations(np.ones(len(unanswered), dtype=np.int64), unanswered, probabilities, entropies)


def dump(predictions: Sequence[Prediction]) -> dict[str, Array]:
    """Returns the fields of predictions as `texts`, `(predictions,)`, `scores` and `spans`, `(predictions, 3)`."""
    rows = [astuple(prediction) for prediction in predictions]
    return {
        "texts": np.array([row[0] for row in rows], dtype=np.str_),
        "scores": np.array([row[1:4] for row in rows], dtype=np.float64).reshape(-1, 3),
        "spans": np.array([row[4:] for row in rows], dtype=np.int64).reshape(-1, 3),
    }


def load(arrays: Arrays) -> list[Prediction]:
    """Returns the predictions that `dump` turned into arrays."""
    rows = zip(arrays["texts"].tolist(), arrays["scores"].tolist(), arrays["spans"].tolist(), strict=True)
    return [Prediction(text, *scores, *span) for text, scores, span in rows]


def answer(prediction: Prediction, features: Sequence[Features], item: Input, spec: Spec) -> Answer:
    """Returns the answer and its offsets; all of them are null if there is no answer."""
    is_none, encoding = decide(prediction, spec) == NO_ANSWER, join_windows(features)
    return Answer(
        answer=None if is_none else prediction.text,
        score=1 - prediction.probability if is_none else prediction.probability,
        start=None if is_none else prediction.start,
        end=None if is_none else prediction.end,
        context=None if is_none else prediction.context,
        tokens=len(encoding),
        windows=len(features),
        truncated=any(window.encoding.truncated for window in features),
    )


def record(answer: Answer) -> dict[str, Any]:
    """Returns the offsets and the probability of the answer, without its text."""
    return {"answer": answer.model_dump(include={"score", "start", "end", "context"})}


def pipeline(answer: Answer, top_k: int | None) -> dict[str, Any]:
    """Returns the answer with the keys of transformers' pipeline."""
    return {"answer": answer.answer or "", "score": answer.score, "start": answer.start or 0, "end": answer.end or 0}
