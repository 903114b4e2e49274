"""The commented first recipe that `deploykit init` writes."""

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

SCHEMA = "recipe.schema.json"
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
    """A question that `deploykit init` asks if no option answers it."""

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
    """Validates and writes a recipe, and the JSON Schema that its first line names for editors.

    Args:
        path: the file.
        answers: by key of `QUESTIONS`.
        force: overwrites an existing file.

    Raises:
        InputError: the file exists, or the recipe is not valid.
    """
    if path.exists() and not force:
        raise InputError(f"{path} exists. Choose another name, or overwrite it with --force.")
    task = methods.load("task", answers["task"])
    named = ", ".join(f"{role}: {name}" for role, (name, _) in task.COLUMNS.items() if name in task.EXAMPLES[0])
    values = {key: _quoted(answer) for key, answer in answers.items()}
    if hasattr(task, "bind"):  # what it does depends on its options, so they are shown
        options = task.Options().model_dump(mode="json", exclude={"max_windows"})
        values["task"] = _flow({"method": answers["task"], **options})
    text = TEMPLATE.format(schema=SCHEMA, path=path.name, columns=named, **values)
    recipe.parse(yaml.safe_load(text), path.parent, str(path))
    with storage_errors(path, "the command's argument"):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text)
        atomic.write_text(path.with_name(SCHEMA), json.dumps(json_schema.schema(), indent=1) + "\n")


def _flow(content: Mapping[str, Any]) -> str:
    """Returns a mapping as YAML on one line, without values that are empty."""

    def filled(value: Any) -> Any:
        return {key: filled(part) for key, part in value.items() if part} if isinstance(value, dict) else value

    text = yaml.safe_dump(filled(content), default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
    return text.strip()


def _quoted(text: str) -> str:
    """Quotes a text for YAML if necessary, also inside braces."""
    return yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=10**6).strip()[1:-1]
