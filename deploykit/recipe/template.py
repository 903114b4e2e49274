"""Writes a first recipe, with a comment on each line that a user may want to change."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from deploykit import methods, recipe
from deploykit.artifact import atomic
from deploykit.errors import InputError, storage_errors
from deploykit.recipe import json_schema

COLUMNS = {
    "text-classification": "text: text, label: label",
    "token-classification": "tokens: tokens, tags: tags",
}
SCHEMA = "recipe.schema.json"
TEMPLATE = """# yaml-language-server: $schema={schema}
# Try it with: deploykit run {path} --dry-run
name: {name}
task: {task}

# A directory, package://MODULE/PATH inside an installed package, or an id of the model hub.
model: {model}

# csv, tsv, jsonl or parquet, also compressed; paths are relative to this file. Add `validation:` and `test:` where
# you have them, otherwise a tenth of the rows each is cut from `train`, stratified and seeded.
data: {{train: {data}, {columns}}}
seed: 0

# Fine-tunes every weight. Already fine-tuned? Set train: null.
train: {{method: full, epochs: 3, learning_rate: 5e-5, batch_size: 32}}

# Removes attention heads and feed-forward neurons, then lets the whole model teach the smaller one.
# prune: null keeps the model as it is.
prune: {{method: width, keep: 0.75, distill: {{epochs: 1, learning_rate: 5e-5}}}}

export: {{opset: 18}}

# int8; the float graph stays if it is faster or better on this machine.
quantize: {{method: dynamic}}

# The run stops if the first metric falls by more than this on the validation split. A few thousand rows cannot
# prove a loss this small: `accept` lets the measured value decide all the same, `stop` ends the run there and
# says how many rows would tell.
gates: {{max_drop: 0.01, inconclusive: accept}}

serve: {{max_batch_tokens: 4096, timeout_s: 10}}
"""


@dataclass(frozen=True)
class Question:
    """What `deploykit init` asks when an answer is not given."""

    key: str
    text: str
    default: str | None = None


QUESTIONS = (
    Question("name", "Name of the run", "my-model"),
    Question("task", f"Task ({', '.join(methods.available('task'))})", "text-classification"),
    Question("model", "Base model (directory, package://… or hub id)"),
    Question("data", "Training file", "train.jsonl"),
)


def write(path: Path, answers: dict[str, str], *, force: bool = False) -> None:
    """Writes a recipe, checks that it is one, and writes the JSON Schema that its first line names for editors.

    Args:
        path: the file.
        answers: one for each key of `QUESTIONS`.
        force: overwrite a file that is there.

    Raises:
        InputError: the file exists, or an answer makes no valid recipe.
    """
    if path.exists() and not force:
        raise InputError(f"{path} exists. Choose another name, or overwrite it with --force.")
    methods.load("task", answers["task"])
    values = {key: _quoted(answer) for key, answer in answers.items()}
    text = TEMPLATE.format(schema=SCHEMA, path=path.name, columns=COLUMNS.get(answers["task"], ""), **values)
    with storage_errors(path, "the command's argument"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.draft")
        temporary.write_text(text, encoding="utf-8")
        try:
            recipe.load(temporary)
            atomic.move(temporary, path)
            atomic.write_text(path.with_name(SCHEMA), json.dumps(json_schema.schema(), indent=1) + "\n")
        finally:
            temporary.unlink(missing_ok=True)


def _quoted(text: str) -> str:
    """Returns a text as YAML reads it back, quoted where it must be, also inside braces."""
    return yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=10**6).strip()[1:-1]
