"""SQuAD: questions on contexts, with the answers as parts of the context; versions 1.1 and 2.0, nested or in rows.

Each row becomes `id` (if it has one), `context`, `question` and `answers`, a list of `text` and `start`; empty if the
question cannot be answered (https://rajpurkar.github.io/SQuAD-explorer/).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from deploykit.data.formats.spans import shorten
from deploykit.data.table import Broken, Row, Table, Values

COLUMNS = ("id", "context", "question", "answers")
SHAPES = 'a list of {"text", "answer_start"}, or {"text": [...], "answer_start": [...]}'


def is_nested(content: Any) -> bool:
    """Tells whether the content of a JSON file is an object with `data`, a list of articles or of questions."""
    data = content.get("data") if isinstance(content, dict) else None
    return isinstance(data, list) and any(
        isinstance(entry, dict) and ("paragraphs" in entry or {"context", "question"} <= set(entry)) for entry in data
    )


def flatten(name: str, content: Mapping[str, Any]) -> Table:
    """Returns a table with a row for each question, counted from 1."""
    rows: list[Row] = []
    broken: list[Broken] = []
    for number, question in enumerate(_questions(content["data"]), start=1):
        if isinstance(question, str):
            broken.append(Broken(number, question))
        else:
            rows.append(Row(number, question))
    return convert(Table(name, "row", COLUMNS, tuple(rows), tuple(broken)))


def _questions(articles: Any) -> Iterator[dict[str, Any] | str]:
    """Yields questions as rows, and a sentence for each part that cannot be read."""
    for index, article in enumerate(articles):
        place = f"data[{index}]"
        if isinstance(article, dict) and "question" in article:
            yield article
            continue
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            yield f"{place} has no list `paragraphs`, expected SQuAD's title and paragraphs"
            continue
        for position, paragraph in enumerate(paragraphs):
            yield from _of_paragraph(paragraph, f"{place}.paragraphs[{position}]", article)


def _of_paragraph(paragraph: Any, place: str, article: Mapping[str, Any]) -> Iterator[dict[str, Any] | str]:
    questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
    if not isinstance(questions, list) or "context" not in paragraph:
        yield f"{place} lacks `context` or the list `qas`, expected both"
        return
    title = {"title": article["title"]} if "title" in article else {}
    for index, question in enumerate(questions):
        if isinstance(question, dict):
            yield {**title, **question, "context": paragraph["context"]}
        else:
            yield f"{place}.qas[{index}] is {shorten(str(question))}, expected an object with id, question and answers"


def recognizes(table: Table) -> bool:
    """Tells whether rows have a context, which is one text, a question, and answers with their offsets."""
    return (
        set(table.columns) >= {"context", "question", "answers"}
        and any(_has_shape(row.values.get("answers")) for row in table.rows)
        and not any(isinstance(row.values.get("context"), list) for row in table.rows)
    )


def _has_shape(answers: Any) -> bool:
    if isinstance(answers, Mapping):
        return isinstance(answers.get("text"), list) and isinstance(answers.get("answer_start"), list)
    return (
        isinstance(answers, list)
        and bool(answers)
        and all(isinstance(answer, Mapping) and "text" in answer for answer in answers)
        and any("start" in answer or "answer_start" in answer for answer in answers)
    )


def convert(table: Table) -> Table:
    """Returns the rows with `answers` as a list of `text` and `start`, checked against the context."""
    return table.convert(_read, COLUMNS)


def _read(values: Values) -> Values:
    identifier = {} if values.get("id") is None else {"id": str(values["id"])}
    name = f"the question {shorten(identifier['id'] if identifier else str(values.get('question')))}"
    for column in ("context", "question"):
        if not isinstance(values.get(column), str) or not values[column].strip():
            raise ValueError(f"{name} has the {column} {values.get(column)!r}, expected a text that is not empty")
    answers = [_answer(answer, values["context"], name) for answer in _listed(values, name)]
    if values.get("is_impossible") and answers:
        raise ValueError(f"{name} has answers although is_impossible is true, expected none")
    return {**values, **identifier, "answers": answers}


def _listed(values: Values, name: str) -> list[Any]:
    answers = values.get("answers")
    if isinstance(answers, list):
        return answers
    if answers is None and "answers" in values:  # as parquet has it for a question without answers
        return []
    if not isinstance(answers, Mapping) or not _has_shape(answers):
        raise ValueError(f"{name} has the answers {shorten(str(answers))}, expected {SHAPES}")
    texts, starts = answers["text"], answers["answer_start"]
    if len(texts) != len(starts):
        raise ValueError(f"{name} has {len(texts)} answers and {len(starts)} offsets, expected as many of each")
    return [{"text": text, "start": start} for text, start in zip(texts, starts, strict=True)]


def _answer(answer: Any, context: str, name: str) -> dict[str, Any]:
    if not isinstance(answer, Mapping) or not isinstance(answer.get("text"), str) or not answer["text"]:
        raise ValueError(f"{name} has the answer {shorten(str(answer))}, expected one with text and answer_start")
    text, start = answer["text"], answer.get("start", answer.get("answer_start"))
    if type(start) is not int or start < 0 or not context.startswith(text, start):
        nearest = context.find(text)
        hint = f"it is at {nearest}" if nearest >= 0 else "it is nowhere in the context"
        raise ValueError(f"{name} has the answer {shorten(text)}, expected at offset {start!r} of the context; {hint}")
    return {"text": text, "start": start}
