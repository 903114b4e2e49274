"""SQuAD: questions on contexts, with the answers as quotations from the context; versions 1.1 and 2.0.

SQuAD's own JSON nests questions in paragraphs of articles. Other files have one row per question. Either way a row
becomes `id` (if it has one), `context`, `question` and `answers`, a list of `text` and `start`. The list is empty if
the question cannot be answered (https://rajpurkar.github.io/SQuAD-explorer/).
"""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from deploykit.data.formats.spans import shorten
from deploykit.data.table import BrokenRow, Row, Table, Values

COLUMNS = ("id", "context", "question", "answers")
EXPECTED_ANSWERS = 'a list of {"text", "answer_start"}, or {"text": [...], "answer_start": [...]}'


def is_nested(content: Any) -> bool:
    """Tells whether the content of a JSON file is an object with `data`, a list of articles or of questions."""
    entries = content.get("data") if isinstance(content, dict) else None
    return isinstance(entries, list) and any(
        isinstance(entry, dict) and ("paragraphs" in entry or {"context", "question"} <= set(entry))
        for entry in entries
    )


def flatten(name: str, content: Mapping[str, Any]) -> Table:
    """Returns a table with a row for each question, numbered from 1.

    Args:
        name: of the file.
        content: of the file, for which `is_nested` is true.
    """
    rows = list(_rows_of_file(content["data"]))
    questions = tuple(row for row in rows if isinstance(row, Row))
    broken_rows = tuple(row for row in rows if isinstance(row, BrokenRow))
    return convert(Table(name, "row", COLUMNS, questions, broken_rows))


def _rows_of_file(entries: list[Any]) -> Iterator[Row | BrokenRow]:
    """Yields a row for each question, and a broken row for each part of the file that cannot be read.

    Args:
        entries: each is an article, or a question with its context, which needs no article.
    """
    numbers = count(1)
    for index, entry in enumerate(entries):
        path = f"data[{index}]"
        if isinstance(entry, dict) and "question" in entry:
            yield Row(next(numbers), entry)
            continue
        paragraphs = entry.get("paragraphs") if isinstance(entry, dict) else None
        if not isinstance(paragraphs, list):
            yield BrokenRow(next(numbers), f"{path} has no list `paragraphs`, expected SQuAD's title and paragraphs")
            continue
        title = {"title": entry["title"]} if "title" in entry else {}
        for position, paragraph in enumerate(paragraphs):
            yield from _rows_of_paragraph(paragraph, f"{path}.paragraphs[{position}]", title, numbers)


def _rows_of_paragraph(
    paragraph: Any, path: str, title: Mapping[str, Any], numbers: Iterator[int]
) -> Iterator[Row | BrokenRow]:
    """Yields a row for each question of a paragraph.

    Args:
        paragraph: an object with `context` and `qas`, the questions.
        path: of the paragraph in the JSON file, for messages.
        title: the column `title` of its article; empty if the article has none.
        numbers: yields the numbers of the rows.
    """
    questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
    if not isinstance(questions, list) or "context" not in paragraph:
        yield BrokenRow(next(numbers), f"{path} lacks `context` or the list `qas`, expected both")
        return
    for index, question in enumerate(questions):
        if isinstance(question, dict):
            yield Row(next(numbers), {**title, **question, "context": paragraph["context"]})
        else:
            yield BrokenRow(
                next(numbers),
                f"{path}.qas[{index}] is {shorten(str(question))}, expected an object with id, question and answers",
            )


def recognizes(table: Table) -> bool:
    """Tells whether rows have a question, a context, and answers with their offsets.

    A table in which a context is a list of texts is excluded. It is not SQuAD's, and the task reads it unconverted:
    each of its answers says which text of the list it is in.
    """
    return (
        set(table.columns) >= {"context", "question", "answers"}
        and any(_are_answers(row.values.get("answers")) for row in table.rows)
        and not any(isinstance(row.values.get("context"), list) for row in table.rows)
    )


def _are_answers(value: Any) -> bool:
    """Tells whether a value has one of the two forms in `EXPECTED_ANSWERS`, with at least one answer in a list."""
    if isinstance(value, Mapping):
        return isinstance(value.get("text"), list) and isinstance(value.get("answer_start"), list)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(answer, Mapping) and "text" in answer for answer in value)
        and any("start" in answer or "answer_start" in answer for answer in value)
    )


def convert(table: Table) -> Table:
    """Returns the rows with `answers` as a list of `text` and `start`, checked against the context."""
    return table.convert(_convert_row, COLUMNS)


def _convert_row(values: Values) -> Values:
    identifier = {} if values.get("id") is None else {"id": str(values["id"])}
    name = f"the question {shorten(identifier['id'] if identifier else str(values.get('question')))}"
    for column in ("context", "question"):
        if not isinstance(values.get(column), str) or not values[column].strip():
            raise ValueError(f"{name} has the {column} {values.get(column)!r}, expected a text that is not empty")
    answers = [_convert_answer(answer, values["context"], name) for answer in _list_answers(values, name)]
    if values.get("is_impossible") and answers:
        raise ValueError(f"{name} has answers although is_impossible is true, expected none")
    return {**values, **identifier, "answers": answers}


def _list_answers(values: Values, name: str) -> list[Any]:
    """Returns the answers of a row as a list, whose items are not checked.

    Raises:
        ValueError: they have neither form of `EXPECTED_ANSWERS`; the message begins with `name`, the question's.
    """
    answers = values.get("answers")
    if isinstance(answers, list):
        return answers
    if answers is None and "answers" in values:  # null in parquet files, for a question without answers
        return []
    if not isinstance(answers, Mapping) or not _are_answers(answers):
        raise ValueError(f"{name} has the answers {shorten(str(answers))}, expected {EXPECTED_ANSWERS}")
    texts, starts = answers["text"], answers["answer_start"]
    if len(texts) != len(starts):
        raise ValueError(f"{name} has {len(texts)} answers and {len(starts)} offsets, expected as many of each")
    return [{"text": text, "start": start} for text, start in zip(texts, starts, strict=True)]


def _convert_answer(answer: Any, context: str, name: str) -> dict[str, Any]:
    """Returns an answer as `text` and `start`, the offset of its first character in the context.

    Raises:
        ValueError: it has no text, or its text is not at this offset; the message begins with `name`, the question's.
    """
    if not isinstance(answer, Mapping) or not isinstance(answer.get("text"), str) or not answer["text"]:
        raise ValueError(f"{name} has the answer {shorten(str(answer))}, expected one with text and answer_start")
    text, start = answer["text"], answer.get("start", answer.get("answer_start"))
    if type(start) is not int or start < 0 or not context.startswith(text, start):
        first_offset = context.find(text)
        hint = f"it is at {first_offset}" if first_offset >= 0 else "it is nowhere in the context"
        raise ValueError(f"{name} has the answer {shorten(text)}, expected at offset {start!r} of the context; {hint}")
    return {"text": text, "start": start}
