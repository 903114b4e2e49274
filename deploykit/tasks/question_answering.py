"""Answers a question with a span of a context, or says that the context has no answer.

A long context is read in overlapping windows, each with the question, and an input may have several contexts. The best
span of all windows is the answer, unless the model prefers "no answer", its score for the first token, by more than a
threshold that is tuned on the validation split.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from deploykit.methods import Frozen
from deploykit.methods import Options as Base
from deploykit.tasks import Array, Arrays, Column, Example, Int64, Observations, Spec, Target
from deploykit.tasks import Input as BaseInput
from deploykit.tasks._answers import answer_list, f1, likely_spans, locate
from deploykit.tasks._classification import binary_entropies, read_text
from deploykit.tasks._units import trim_to_graphemes
from deploykit.tasks._unlabelled import example_labels, label_names, label_order  # noqa: F401  functions of this task
from deploykit.tokenizer import Features, Tokenizer, joined

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
    "answers": Column(
        "answers",
        "the right answers, a list of `text` and `start` (or as SQuAD has them); empty if there is none",
    ),
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
NO_SPAN_MARGIN = 100.0  # by which "no answer" is likelier in a context without visible text: certain, but finite


class Options(Base):
    """How contexts are read, and which spans may be answers."""

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
    def sources(self) -> tuple[str, ...]:
        """The texts that may hold the answer."""
        return self.contexts or (self.context,)

    @property
    def texts(self) -> tuple[str, ...]:
        """The question and the texts."""
        return (self.question, *self.sources)

    def with_texts(self, change: Callable[[str], str]) -> Self:
        """Returns the input with the question and the texts changed."""
        contexts = tuple(map(change, self.contexts))
        return super().with_texts(change).model_copy(update={"contexts": contexts})


class Answer(Frozen):
    """The prediction for one question."""

    answer: str | None = Field(description="the answer, null if there is none")
    score: float = Field(
        description="its probability among all spans and no answer, 0 to 1; null: 1 less the best span's"
    )
    start: int | None = Field(description="offset of its first character in the context")
    end: int | None = Field(description="offset after its last character")
    context: int | None = Field(description="which of several contexts holds it, counted from 0")
    tokens: int = Field(description="tokens that the model read")
    windows: int = Field(description="overlapping parts that the contexts were read in")
    truncated: bool = Field(description="whether the end of a context was cut off")


@dataclass(frozen=True)
class Prediction:
    """The best span of all windows; `score` and `no_answer` are sums of logits, `probability` is the span's own."""

    text: str
    score: float
    no_answer: float
    probability: float
    context: int
    start: int
    end: int


def reader(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
) -> Callable[[Mapping[str, Any]], Example]:
    """Returns a function that reads a question, its context and its answers."""

    def read(row: Mapping[str, Any]) -> Example:
        question, contexts = read_text(row, str(columns["question"])), row[str(columns["context"])]
        contexts = [contexts] if isinstance(contexts, str) else contexts
        if not isinstance(contexts, list) or not contexts or not all(isinstance(part, str) for part in contexts):
            raise ValueError(f"the context is {contexts!r}, expected a text or a list of texts")
        answers = tuple(locate(answer, contexts) for answer in answer_list(row[str(columns["answers"])]))
        if len(contexts) == 1:
            return Example(Input(question=question, context=contexts[0]), answers)
        return Example(Input(question=question, contexts=tuple(contexts)), answers)

    return read


def observed_labels(spec: Spec) -> tuple[str, ...]:
    """Returns what is counted of answers: whether there is one."""
    return ("answered", "no answer")


def encode(inputs: Sequence[Input], tokenizer: Tokenizer, spec: Spec) -> list[list[Features]]:
    """Tokenizes questions with the windows of their contexts; `part` is context and tokens of the context."""
    options: Options = spec.options
    encoded = []
    for item in inputs:
        windows: list[Features] = []
        for index, context in enumerate(item.sources):
            rest = options.max_windows - len(windows)
            if rest == 0:  # what is not read counts as cut off
                windows[-1] = replace(windows[-1], encoding=replace(windows[-1].encoding, truncated=True))
                break
            windows += tokenizer.windows_beside(
                item.question, context, index, rest, options.stride, options.max_question_tokens
            )
        encoded.append(windows)
    return encoded


def targets(example: Example, features: Features, spec: Spec) -> dict[str, Int64]:
    """Returns the first and the last token of the first answer, shape `()`; the first token if it is not shown."""
    context, tokens = features.part
    offsets = features.encoding.offsets[tokens]
    for text, start, place in example.target[:1]:
        inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < start + len(text)))
        shows_start = place == context and len(inside) and offsets[inside[0], 0] <= start
        if shows_start and offsets[inside[-1], 1] >= start + len(text):
            ends = tokens.start + np.array([inside[0], inside[-1]], dtype=np.int64)
            return {"start": ends[0], "end": ends[1]}
    return {"start": np.array(0), "end": np.array(0)}


def decode(outputs: Sequence[Arrays], features: Sequence[Features], item: Input, spec: Spec) -> Prediction:
    """Returns the best span of all windows."""
    spans = dict[tuple[int, int, int], float]()  # the score of each, in the window that is most certain of it
    no_answer_scores = []
    for arrays, window in zip(outputs, features, strict=True):
        context, tokens = window.part
        no_answer_scores.append(float(arrays["start_logits"][0] + arrays["end_logits"][0]))
        starts, ends = (arrays[name][tokens] for name in OUTPUTS)
        offsets, limit = window.encoding.offsets[tokens], spec.options.max_answer_tokens
        for score, start, end in likely_spans(starts, ends, offsets, item.sources[context], limit):
            span = context, start, end
            spans[span] = max(score, spans.get(span, -np.inf))
    no_answer = min(no_answer_scores)  # a window without the answer says nothing of the others
    if not spans:
        return Prediction(NO_ANSWER, no_answer - NO_SPAN_MARGIN, no_answer, 0.0, 0, 0, 0)
    score, (context, start, end) = max((score, span) for span, score in spans.items())
    scores = np.array([no_answer, *spans.values()])
    probability = float(np.exp(score - scores.max()) / np.exp(scores - scores.max()).sum())
    start, end = trim_to_graphemes(item.sources[context], start, end)
    return Prediction(item.sources[context][start:end], score, no_answer, probability, context, start, end)


def tune(gold: Sequence[Any], predictions: Sequence[Prediction], spec: Spec) -> Options:
    """Returns options with the threshold for "no answer" that gives the highest F1 on the validation split."""
    options: Options = spec.options
    if options.no_answer_threshold is not None:
        return options
    rows = [(row, texts) for row, texts in zip(predictions, gold, strict=True) if row.text]
    if not rows:  # no context has visible text
        return options
    margins = np.array([prediction.no_answer - prediction.score for prediction, _ in rows])
    f1_if_answered = np.array([f1(prediction.text, texts) for prediction, texts in rows])
    f1_if_not = np.array([float(not texts) for _, texts in rows])
    order = np.argsort(margins)  # with the threshold after each, those before it are answered
    gains = np.concatenate([[0.0], np.cumsum((f1_if_answered - f1_if_not)[order])])
    best = int(gains.argmax())
    # Beyond both ends, all or none of the questions are answered.
    ordered = np.concatenate([margins.min(keepdims=True) - 2, margins[order], margins.max(keepdims=True) + 2])
    threshold = (ordered[best] + ordered[best + 1]) / 2
    return options.model_copy(update={"no_answer_threshold": round(float(threshold), 4)})


def gold(example: Example, spec: Spec) -> tuple[str, ...]:
    """Returns the texts of the right answers; none if there is no answer."""
    return tuple(dict.fromkeys(text for text, _, _ in example.target))


def decide(prediction: Prediction, spec: Spec) -> str:
    """Returns the text of the answer, empty if there is none."""
    threshold = spec.options.no_answer_threshold or 0.0
    return NO_ANSWER if prediction.no_answer - prediction.score > threshold else prediction.text


def changes(example: Example, before: str, after: str, spec: Spec) -> list[dict[str, str]]:
    """Returns the question with its answers and those before and after, if they differ."""
    if before == after:
        return []
    true = " | ".join(gold(example, spec))
    return [{"text": example.input.question, "true": true, "before": before, "after": after}]


def distance(first: Prediction, second: Prediction) -> float:
    """Returns the difference of the probabilities.

    Of different spans, also by how much the likelier one exceeds one half: below that, other spans are likely, too.
    """
    moved = abs(first.probability - second.probability)
    if (first.context, first.start, first.end) == (second.context, second.start, second.end):
        return moved
    return max(moved, max(first.probability, second.probability) - 0.5)


def observe(predictions: Sequence[Prediction], spec: Spec) -> Observations:
    """Returns whether each question was answered, and the probability of the best span."""
    unanswered = np.array([decide(prediction, spec) == NO_ANSWER for prediction in predictions], dtype=np.int64)
    probabilities = np.array([prediction.probability for prediction in predictions], dtype=np.float32)
    entropies = binary_entropies(probabilities)
    return Observations(np.ones(len(unanswered), dtype=np.int64), unanswered, probabilities, entropies)


def dump(predictions: Sequence[Prediction]) -> dict[str, Array]:
    """Returns `texts`, `(predictions,)`, and `scores` and `spans`, both `(predictions, 3)`."""
    rows = [astuple(prediction) for prediction in predictions]
    return {
        "texts": np.array([row[0] for row in rows], dtype=np.str_),
        "scores": np.array([row[1:4] for row in rows], dtype=np.float64).reshape(-1, 3),
        "spans": np.array([row[4:] for row in rows], dtype=np.int64).reshape(-1, 3),
    }


def load(arrays: Arrays) -> list[Prediction]:
    """Turns the arrays of `dump` into predictions."""
    rows = zip(arrays["texts"].tolist(), arrays["scores"].tolist(), arrays["spans"].tolist(), strict=True)
    return [Prediction(text, *scores, *span) for text, scores, span in rows]


def answer(prediction: Prediction, features: Sequence[Features], item: Input, spec: Spec) -> Answer:
    """Returns the answer with its place, or none."""
    is_none, encoding = decide(prediction, spec) == NO_ANSWER, joined(features)
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
    """Returns the place and the probability of the answer."""
    return {"answer": answer.model_dump(include={"score", "start", "end", "context"})}


def pipeline(answer: Answer, top_k: int | None) -> dict[str, Any]:
    """Returns the answer with the keys that transformers' pipeline uses."""
    return {"answer": answer.answer or "", "score": answer.score, "start": answer.start or 0, "end": answer.end or 0}
