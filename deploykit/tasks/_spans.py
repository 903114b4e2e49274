"""Reads labelled spans from rows of data, which hold either tokens with tags or a text with character spans."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from deploykit.tasks import Example, Span, TextInput
from deploykit.tasks._tags import decode_entities, recognize_scheme
from deploykit.tasks._units import UNIT, join_tokens, units


def reader(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
) -> Callable[[Mapping[str, Any]], Example]:
    """Returns a function that reads a row; the tags of all `rows` together show which scheme they are written in."""
    if columns.get("spans"):
        return lambda row: _read_spans_row(row[str(columns["text"])], row[str(columns["spans"])])
    tag_lists = [row.get(str(columns["tags"])) for row in rows]
    tags = {tag for row_tags in tag_lists if isinstance(row_tags, list) for tag in row_tags if isinstance(tag, str)}
    to_bioes = recognize_scheme(tags)
    return lambda row: _read_tags_row(row[str(columns["tokens"])], row[str(columns["tags"])], to_bioes)


def _read_spans_row(text: Any, spans: Any) -> Example:
    target = read_spans(text, spans)  # first, because it raises if the text is none
    return Example(TextInput(text=text), target)


def read_spans(text: Any, spans: Any) -> tuple[Span, ...]:
    """Returns the labelled spans of a text, sorted by their start and without white space at their ends.

    Args:
        text: of the row; must not be empty.
        spans: list of objects with `start`, `end` and `label`.

    Raises:
        ValueError: a span lies outside the text, covers no word, or cuts one; or two spans overlap.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the text is {text!r}, expected one that is not empty")
    if not isinstance(spans, list) or not all(isinstance(span, Mapping) for span in spans):
        raise ValueError(f"spans is {spans!r}, expected a list of objects with start, end and label")
    return _trim_spans(text, [_parse_span(span, text) for span in spans])


def _parse_span(span: Mapping[str, Any], text: str) -> Span:
    """Returns a span of the data; raises ValueError if it lies outside the text or has no label."""
    start, end, label = span.get("start"), span.get("end"), span.get("label")
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
        raise ValueError(f"the span {dict(span)!r} does not lie in a text of {len(text)} characters")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the span {dict(span)!r} has no label")
    return Span(start, end, label.strip())


def _read_tags_row(tokens: Any, tags: Any, to_bioes: Callable[[str], str]) -> Example:
    """Joins tokens to a text, and returns it with the spans that the tags mean.

    Args:
        tokens: list of words.
        tags: list of their tags, of the same length.
        to_bioes: function of `recognize_scheme` that converts a tag.

    Raises:
        ValueError: the lists do not fit together, or a token or tag is not valid.
    """
    if not isinstance(tokens, list) or not isinstance(tags, list) or not tokens:
        raise ValueError("tokens and tags must be lists, and not empty")
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens and {len(tags)} tags, expected as many of each")
    if not all(isinstance(token, str) and token for token in tokens):
        raise ValueError("a token is empty or not a string")
    if not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise ValueError("a tag is empty or not a string")
    text, offsets = join_tokens(tokens)
    if not text.strip():
        raise ValueError("all tokens are white space")
    entities = decode_entities([*map(to_bioes, tags)])
    spans = [Span(offsets[first][0], offsets[last][1], label) for label, first, last in entities]
    visible = [span for span in spans if UNIT.search(text, span.start, span.end)]  # tokens may be white space
    return Example(TextInput(text=text), _trim_spans(text, visible))


def _trim_spans(text: str, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Sorts spans by their start, and removes the white space at their ends.

    Raises:
        ValueError: a span covers no unit or cuts one, or two spans overlap.
    """
    starts, ends = units(text).T.tolist()
    trimmed: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        # The first unit that ends after the span begins, and the last one that begins before it ends.
        first, last = bisect_right(ends, span.start), bisect_left(starts, span.end) - 1
        name = f"the span {span.start}-{span.end} {text[span.start : span.end]!r}"
        if last < first:
            raise ValueError(f"{name} covers no word of the text, expected at least one")
        for unit in (first, last):
            if starts[unit] < span.start or ends[unit] > span.end:
                word = text[starts[unit] : ends[unit]]
                raise ValueError(f"{name} begins or ends inside the word {word!r}, expected whole words")
        trimmed.append(Span(starts[first], ends[last], span.label))
    for before, after in pairwise(trimmed):
        if after.start < before.end:
            raise ValueError(f"the spans {before} and {after} overlap, expected one label per word")
    return tuple(trimmed)
