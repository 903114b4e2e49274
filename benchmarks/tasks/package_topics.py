"""Makes the data of `package-topics.yaml`: which section of Debian a package belongs to, by its description.

The model learns from English descriptions and is judged on the same packages in four languages, which people translated
(Debian Description Translation Project). The package lists of Debian 12 are the source:

    mkdir -p lists/partial
    apt-get update -o Acquire::Languages=en,de,fr,es -o Acquire::GzipIndexes=false -o Dir::State::Lists=$PWD/lists
    python benchmarks/tasks/package_topics.py lists benchmarks/data/package-topics

Each description is under the licence of its package. Binary packages of one source package stay in one split.
"""

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SECTIONS = (
    "admin",
    "education",
    "games",
    "graphics",
    "mail",
    "math",
    "net",
    "science",
    "sound",
    "text",
    "video",
    "web",
)
LANGUAGES = ("en", "de", "fr", "es")
TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 400, 50, 30  # of each section; the test rows in each language
MAX_CHARACTERS = 600
FIELD = re.compile(r"^([A-Za-z0-9-]+): ?(.*)$")


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """Reads the stanzas of a file of apt."""
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        fields, name = dict[str, str](), ""
        for line in block.splitlines():
            if match := FIELD.match(line):
                name, fields[match[1]] = match[1], match[2]
            elif name:
                fields[name] += "\n" + line.strip()
        if fields:
            yield fields


def descriptions(lists: Path, language: str) -> dict[str, str]:
    """Returns the description of each package: one line, and the paragraphs below it."""
    (file,) = lists.glob(f"*_dists_bookworm_main_i18n_Translation-{language}")
    key = f"Description-{language}"
    texts = {fields["Package"]: fields[key] for fields in stanzas(file) if key in fields}
    return {name: " ".join(text.replace("\n.\n", "\n").split())[:MAX_CHARACTERS] for name, text in texts.items()}


def main() -> None:
    """Writes train.jsonl, validation.jsonl and test.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    (packages,) = arguments.lists.glob("*_dists_bookworm_main_binary-amd64_Packages")
    texts = {language: descriptions(arguments.lists, language) for language in LANGUAGES}
    sources = defaultdict[str, dict[str, str]](dict)  # by section: one package of each source
    for fields in stanzas(packages):
        name, source = fields["Package"], fields.get("Source", fields["Package"]).split()[0]
        if fields["Section"] in SECTIONS and name in texts["en"]:
            sources[fields["Section"]].setdefault(source, name)
    rows = {"train": [], "validation": [], "test": []}  # type: dict[str, list[dict[str, str]]]
    shuffled = random.Random(0)
    for section in SECTIONS:
        names = list(sources[section].values())
        shuffled.shuffle(names)
        test = [name for name in names if all(name in texts[language] for language in LANGUAGES)][:TEST_ROWS]
        others = [name for name in names if name not in set(test)][: TRAIN_ROWS + VALIDATION_ROWS]
        parts = {"train": others[VALIDATION_ROWS:], "validation": others[:VALIDATION_ROWS], "test": test}
        for split, members in parts.items():
            for name in members:
                for language in LANGUAGES if split == "test" else ("en",):
                    text = texts[language][name]
                    rows[split].append({"text": text, "label": section, "language": language, "package": name})
    arguments.output.mkdir(parents=True, exist_ok=True)
    for split, members_of_split in rows.items():
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in members_of_split)
        (arguments.output / f"{split}.jsonl").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
