"""Writes synthetic sentences with entities and relations, or with events and their roles.

The sentences come from a small grammar, not from people. Names are made of syllables, and no name of the test split
occurs in the training split, so that a model must read the sentence. Some sentences name entities without a relation
between them, and relations occur in both orders of their entities.

    python benchmarks/tasks/grammar.py relations OUT    # 2,400 sentences to train, 300 to validate, 300 to test
    python benchmarks/tasks/grammar.py events OUT
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZES = {"train": 2400, "validation": 300, "test": 300}
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnrstv" for vowel in "aeo"]
ORGANIZATIONS = ("Works", "Bank", "Motors", "Group", "Labs", "University", "Press", "Airlines")
PLACE_ENDINGS = ("ville", "burg", "ton", "stad", "mouth", "field")
# A sentence, and its relations as (head, label, tail) by the names of the slots.
RELATIONS: list[tuple[str, list[tuple[str, str, str]]]] = [
    ("{a:PERSON} works for {b:ORG} .", [("a", "works_for", "b")]),
    ("{b:ORG} has employed {a:PERSON} since 1998 .", [("a", "works_for", "b")]),
    ("At {b:ORG} , {a:PERSON} is paid as an engineer .", [("a", "works_for", "b")]),
    ("{a:PERSON} founded {b:ORG} in {c:PLACE} .", [("a", "founded", "b"), ("b", "based_in", "c")]),
    ("{b:ORG} was founded by {a:PERSON} .", [("a", "founded", "b")]),
    ("{b:ORG} , which {a:PERSON} started , is based in {c:PLACE} .", [("a", "founded", "b"), ("b", "based_in", "c")]),
    ("{a:PERSON} was born in {c:PLACE} .", [("a", "born_in", "c")]),
    (
        "{c:PLACE} is the birthplace of {a:PERSON} , who works for {b:ORG} .",
        [("a", "born_in", "c"), ("a", "works_for", "b")],
    ),
    ("The head office of {b:ORG} is in {c:PLACE} .", [("b", "based_in", "c")]),
    ("From {c:PLACE} , {b:ORG} sells cars to the world .", [("b", "based_in", "c")]),
    ("{a:PERSON} and {d:PERSON} both work for {b:ORG} .", [("a", "works_for", "b"), ("d", "works_for", "b")]),
    ("{a:PERSON} , born in {c:PLACE} , founded {b:ORG} .", [("a", "born_in", "c"), ("a", "founded", "b")]),
    ("{a:PERSON} never worked for {b:ORG} .", []),
    ("{a:PERSON} passed through {c:PLACE} on the way to {b:ORG} .", []),
    ("{b:ORG} has no office in {c:PLACE} .", []),
    ("{a:PERSON} wrote a letter to {d:PERSON} about {c:PLACE} .", []),
    ("{a:PERSON} works for {b:ORG} , but {d:PERSON} does not .", [("a", "works_for", "b")]),
]
EVENTS: list[tuple[str, list[tuple[str, str, str]]]] = [
    (
        "{a:ORG} {t:BUY=bought,acquired} {b:ORG} for {m:MONEY} .",
        [("t", "buyer", "a"), ("t", "bought", "b"), ("t", "price", "m")],
    ),
    ("{b:ORG} was {t:BUY=bought,taken over} by {a:ORG} .", [("t", "buyer", "a"), ("t", "bought", "b")]),
    (
        "{a:ORG} {t:HIRE=hired,appointed} {p:PERSON} in {d:DATE} .",
        [("t", "employer", "a"), ("t", "hired", "p"), ("t", "time", "d")],
    ),
    (
        "In {d:DATE} , {p:PERSON} was {t:HIRE=hired,recruited} by {a:ORG} .",
        [("t", "employer", "a"), ("t", "hired", "p"), ("t", "time", "d")],
    ),
    (
        "{p:PERSON} {t:MEET=met,visited} {q:PERSON} in {c:PLACE} .",
        [("t", "participant", "p"), ("t", "participant", "q"), ("t", "place", "c")],
    ),
    (
        "The {t:MEET=meeting,talks} of {p:PERSON} and {q:PERSON} lasted until {d:DATE} .",
        [("t", "participant", "p"), ("t", "participant", "q")],
    ),
    (
        "{a:ORG} {t:BUY=bought,acquired} {b:ORG} and {u:HIRE=hired,recruited} {p:PERSON} .",
        [("t", "buyer", "a"), ("t", "bought", "b"), ("u", "employer", "a"), ("u", "hired", "p")],
    ),
    ("{p:PERSON} lives in {c:PLACE} and likes {a:ORG} .", []),
    ("The shares of {a:ORG} and {b:ORG} did not move in {d:DATE} .", []),
]
SLOT = re.compile(r"\{(?P<name>\w+):(?P<label>\w+)(?:=(?P<words>[^}]*))?\}")  # a label, and words to choose from


def name_of(label: str, draw: random.Random, parity: int) -> str:
    """Returns a name whose syllables' numbers have a parity, by which the splits differ."""
    while True:
        places = [draw.randrange(len(SYLLABLES)) for _ in range(draw.choice((2, 3)))]
        if sum(places) % 2 == parity:
            break
    word = "".join(SYLLABLES[place] for place in places).capitalize()
    if label == "ORG":
        return f"{word} {draw.choice(ORGANIZATIONS)}"
    if label == "PLACE":
        return word + draw.choice(PLACE_ENDINGS)
    if label == "MONEY":
        return f"{draw.randrange(2, 99)} million euros"
    if label == "DATE":
        return f"{draw.choice(('March', 'May', 'October', 'June'))} {draw.randrange(1990, 2026)}"
    return f"{word} {''.join(draw.sample(SYLLABLES, 2)).capitalize()}"


def sentence(template: str, relations: list[tuple[str, str, str]], draw: random.Random, parity: int) -> dict[str, Any]:
    """Fills the slots of a template."""
    text, end, entities, places = "", 0, list[dict[str, Any]](), dict[str, int]()
    for slot in SLOT.finditer(template):
        text += template[end : slot.start()]
        words = slot["words"].split(",") if slot["words"] else None
        filler = draw.choice(words) if words else name_of(slot["label"], draw, parity)
        places[slot["name"]] = len(entities)
        entities.append({"start": len(text), "end": len(text) + len(filler), "label": slot["label"]})
        text, end = text + filler, slot.end()
    text += template[end:]
    edges = [{"head": places[head], "tail": places[tail], "label": label} for head, label, tail in relations]
    return {"text": text, "spans": entities, "relations": edges}


def sentences(kind: str, count: int, seed: int, parity: int) -> Iterator[dict[str, Any]]:
    """Yields different sentences of one or two clauses."""
    draw, seen = random.Random(seed), set[str]()
    templates = RELATIONS if kind == "relations" else EVENTS
    while len(seen) < count:
        parts = [sentence(*draw.choice(templates), draw, parity) for _ in range(draw.choice((1, 1, 2)))]
        joined: dict[str, Any] = {"text": "", "spans": [], "relations": []}
        for part in parts:
            shift, before = len(joined["text"]) + bool(joined["text"]), len(joined["spans"])
            joined["text"] = f"{joined['text']} {part['text']}".strip()
            for entity in part["spans"]:
                joined["spans"].append({**entity, "start": entity["start"] + shift, "end": entity["end"] + shift})
            for edge in part["relations"]:
                joined["relations"].append({**edge, "head": edge["head"] + before, "tail": edge["tail"] + before})
        if joined["text"] not in seen:
            seen.add(joined["text"])
            yield joined


def main() -> None:
    """Writes the three splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("relations", "events"))
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(SIZES.items()):
        rows = sentences(arguments.kind, count, seed, parity=int(split == "test"))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (arguments.out / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
