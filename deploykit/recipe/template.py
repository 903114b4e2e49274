"""Writes the first recipe, with comments, for `deploykit init`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploykit import methods, recipe
from deploykit.artifact import atomic
from deploykit.errors import InputError, storage_errors
from deploykit.recipe import json_schema

SCHEMA_FILE = "recipe.schema.json"
LINE_CHARACTERS = 10**6  # so many that YAML never breaks a line
TEMPLATE = """# yaml-language-server: $schema={schema}
# Try it with: deploykit run {path} --dry-run
name: {name}
task: {task}

# A directory, package://MODULE/PATH inside an installed package, or an id of the model hub.
model: {model}

# A file (csv, tsv, json, jsonl, parquet, conll, ...) or a directory; paths are relative to this file. Add `validation:`
# and `test:` if you have them; otherwise a tenth of the rows each is cut from `train`, stratified and seeded.
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
# prove such a small loss: with `accept` the measured value decides then, with `stop` the run ends and says how
# many rows would be enough.
gates: {{max_drop: 0.01, inconclusive: accept}}

serve: {{max_batch_tokens: 4096, timeout_s: 10}}
"""


@dataclass(frozen=True)
class Question:
    """A question that `deploykit init` asks if the option `--KEY` is missing."""

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
    """Validates and writes a recipe, and beside it the JSON Schema that its first line names for editors.

    Args:
        path: of the recipe.
        answers: to `QUESTIONS`, by their keys.
        force: overwrites an existing recipe.

    Raises:
        InputError: the file exists, or the recipe is not valid.
    """
    if path.exists() and not force:
        raise InputError(f"{path} exists. Choose another name, or overwrite it with --force.")
    task = methods.load("task", answers["task"])
    # Columns that the task's first example has are usual; the others are optional.
    columns = ", ".join(f"{role}: {name}" for role, (name, _) in task.COLUMNS.items() if name in task.EXAMPLES[0])
    values = {key: _quote(answer) for key, answer in answers.items()}
    if hasattr(task, "bind"):  # such a task does something else with other options, so the recipe shows them
        options = task.Options().model_dump(mode="json", exclude={"max_windows"})
        values["task"] = _to_inline_yaml({"method": answers["task"], **options})
    text = TEMPLATE.format(schema=SCHEMA_FILE, path=path.name, columns=columns, **values)
    recipe.parse(yaml.safe_load(text), path.parent, str(path))
    with storage_errors(path, "the command's argument"):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text)
        atomic.write_text(path.with_name(SCHEMA_FILE), json.dumps(json_schema.schema(), indent=1) + "\n")


def _to_inline_yaml(content: Mapping[str, Any]) -> str:
    """Returns a mapping as YAML on one line, without values that are empty."""

    def without_empty(value: Any) -> Any:
        return {key: without_empty(item) for key, item in value.items() if item} if isinstance(value, dict) else value

    text = yaml.safe_dump(
        without_empty(content), default_flow_style=True, allow_unicode=True, sort_keys=False, width=LINE_CHARACTERS
    )
    return text.strip()


def _quote(text: str) -> str:
    """Quotes a text for YAML where that is necessary, also for a place inside braces."""
    return yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=LINE_CHARACTERS).strip()[1:-1]
