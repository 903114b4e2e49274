"""The command line as a user meets it: every bad input has a message that says what to do, and an exit code."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from deploykit import cli
from deploykit.artifact import Artifact

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def call(monkeypatch, capsys):
    """`call(*arguments) -> (exit code, what it printed, its error message)`."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["deploykit", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code or 0
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return code, captured.out, captured.err

    return run


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(count=60, labels=("negative", "positive")):
    return [{"text": f"text number {index}", "label": labels[index % len(labels)]} for index in range(count)]


# The recipe


def test_unknown_key_with_the_nearest_right_one(call, tmp_path, tiny_recipe):
    code, _, message = call("run", tiny_recipe(tmp_path), "--set", "train.epoch=2")
    assert code == 2
    assert re.search(r"train\.epoch: unknown key.*did you mean 'epochs'", message)


def test_several_mistakes_are_all_listed(call, tmp_path, tiny_recipe):
    path = tiny_recipe(tmp_path, seed="x")
    code, _, message = call(
        "run", path, "--set", "gates.max_dorp=1", "--set", "export.opset=3", "--set", "prune.keep=2"
    )
    assert code == 2
    assert "has 4 mistakes" in message
    for place in ("seed", "gates.max_dorp", "export.opset", "prune.keep"):
        assert f"- {place}: " in message


def test_recipe_that_is_not_there(call, tmp_path):
    code, _, message = call("run", tmp_path / "recipe.yaml")
    assert code == 2
    assert "there is no recipe" in message
    assert "deploykit init" in message


def test_unknown_method_lists_those_that_are_there(call, tmp_path, tiny_recipe):
    code, _, message = call("run", tiny_recipe(tmp_path), "--set", "prune.method=widht")
    assert code == 2
    assert "no pruner is called 'widht' (did you mean 'width'?)" in message or "did you mean 'width'" in message


# The data


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(
            lambda folder: write_rows(folder / "a.jsonl", [{"txt": "a", "label": "b"}] * 9),
            r"column 'text'.*'?txt'?",
            id="missing column",
        ),
        pytest.param(lambda folder: str(folder / "no.jsonl"), r"no\.jsonl", id="missing file"),
        pytest.param(
            lambda folder: (
                (folder / "a.jsonl").write_bytes(b'{"text": "caf\xe9", "label": "a"}\n') and str(folder / "a.jsonl")
            ),
            r"not UTF-8.*line 1|line 1.*not UTF-8",
            id="non-UTF-8",
        ),
        pytest.param(
            lambda folder: write_rows(folder / "a.jsonl", rows(labels=("only",))), r"(one|1) label|only", id="one class"
        ),
        pytest.param(lambda folder: write_rows(folder / "a.jsonl", []), r"empty|no rows", id="empty split"),
        pytest.param(
            lambda folder: write_rows(folder / "a.jsonl", [*rows(), {"text": " ", "label": "positive"}]),
            r"line 61",
            id="empty text",
        ),
    ],
)
def test_bad_training_data(call, tmp_path, tiny_recipe, make, expected):
    path = tiny_recipe(tmp_path, data={"train": make(tmp_path)})
    code, _, message = call("run", path)
    assert code == 2
    assert re.search(expected, message, re.DOTALL), message


def test_labels_in_test_that_training_never_saw(call, tmp_path, tiny_recipe, review_files):
    files = {name: str(review_files / f"{name}.jsonl") for name in ("train", "validation")}
    test = write_rows(tmp_path / "test.jsonl", [*rows(20), {"text": "so so", "label": "neutral"}])
    code, _, message = call("run", tiny_recipe(tmp_path, data={**files, "test": test}))
    assert code == 2
    assert re.search(r"neutral.*(line )?21|21.*neutral", message, re.DOTALL), message


def test_rows_that_stand_in_two_splits(call, tmp_path, tiny_recipe, review_files):
    files = {name: str(review_files / "train.jsonl") for name in ("train", "test")}
    code, _, message = call("run", tiny_recipe(tmp_path, data=files))
    assert code == 2
    assert re.search(r"\d+ rows of the test split occur in the train split, too", message), message


def test_broken_rows_are_listed_ten_at_most(call, tmp_path, tiny_recipe):
    broken = [{"text": "a", "label": None}] * 15
    code, _, message = call("run", tiny_recipe(tmp_path, data={"train": write_rows(tmp_path / "a.jsonl", broken)}))
    assert code == 2
    assert "10" in message
    assert not re.search(r"line 11\b", message), message


def test_long_texts_are_counted_and_reported(call, caplog, tmp_path, tiny_recipe, review_files):
    long = [{"text": f"{'the story ' * 60}{index}", "label": "positive"} for index in range(3)]
    content = (review_files / "train.jsonl").read_text() + "".join(json.dumps(row) + "\n" for row in long)
    (tmp_path / "train.jsonl").write_text(content)
    files = {name: str(review_files / f"{name}.jsonl") for name in ("validation", "test")}
    path = tiny_recipe(tmp_path, data={**files, "train": "train.jsonl"})
    code, _, message = call("run", path, "--until", "train", "--set", "train.epochs=1")
    assert code == 0, message
    artifact = Artifact.load(tmp_path / "runs/tiny/train")
    assert artifact.manifest.own_details["lengths"]["train"]["truncated"] == 3
    assert "3 of 283 train texts are longer than 64 tokens and are read in up to 16 windows" in caplog.text
    assert "| train | 283 | 123 | 3 |" in (tmp_path / "runs/tiny/report.md").read_text()


def test_texts_that_the_tokenizer_does_not_know_are_warned_about(call, caplog, tmp_path, tiny_recipe):
    rows = [{"text": f"日本 {'日本 ' * number}", "label": "ab"[number % 2]} for number in range(40)]
    path = tiny_recipe(tmp_path, data={"train": write_rows(tmp_path / "a.jsonl", rows)})
    code, _, message = call("run", path, "--until", "train", "--set", "train.epochs=1")
    assert code == 0, message
    assert "32 of 32 train texts consist mostly of tokens that the tokenizer does not have" in caplog.text


def test_spans_that_the_tokenizer_cannot_express_are_warned_about(call, caplog, tmp_path, tiny_recipe):
    """To a tokenizer without digits `7kg` is one token, which cannot have two labels."""
    rows = [
        {
            "text": f"{'the ' * number}story is {number}kg",
            "spans": [{"start": start, "end": start + len(str(number)), "label": "NAME"}],
        }
        for number in range(40)
        for start in [4 * number + 9]
    ]
    data = {"train": write_rows(tmp_path / "a.jsonl", rows), "spans": "spans"}
    path = tiny_recipe(tmp_path, task="token-classification", data=data)
    code, _, message = call("run", path, "--until", "train", "--set", "train.epochs=1")
    assert code == 0, message
    assert re.search(
        r"\d+ of 32 spans of the training split begin or end inside a token of the model's tokenizer, such as '\d+':"
        " the model cannot predict them",
        caplog.text,
    )


# The model


def test_model_directory_that_is_none(call, tmp_path, tiny_recipe):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").touch()
    code, _, message = call("run", tiny_recipe(tmp_path, model="model"))
    assert code == 2
    assert "is no model directory: expected config.json and model.safetensors, found pytorch_model.bin" in message


def test_wrong_task(call, tmp_path, tiny_recipe, tagged_files):
    files = {name: str(tagged_files / f"{name}.jsonl") for name in ("train", "validation", "test")}
    code, _, message = call("run", tiny_recipe(tmp_path, data=files))
    assert code == 2
    assert re.search(r"column 'text'.*tokens", message, re.DOTALL), message


def test_model_of_another_kind(call, tmp_path, tiny_recipe, tokenizer_folder):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.VitsConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    shutil.copytree(tokenizer_folder, tmp_path / "model")
    config.save_pretrained(tmp_path / "model")
    transformers.BertModel(
        transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other/model.safetensors", tmp_path / "model")
    code, _, message = call("run", tiny_recipe(tmp_path, model="model", prune=None))
    assert code == 2
    assert "has the model type 'vits' in config.json, which is not a text or image model of transformers" in message


# The disk


def test_no_space_on_the_disk(tmp_path, tiny_recipe):
    """A file system of one megabyte, in a namespace of its own."""
    path = tiny_recipe(tmp_path, output=str(tmp_path / "small"))
    (tmp_path / "small").mkdir()
    mount = f"mount -t tmpfs -o size=200k tmpfs {tmp_path}/small && {sys.executable} -m deploykit run {path}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"this system lets nobody mount: {done.stderr.strip()}")
    assert done.returncode == 2, done.stderr
    assert "no space left on the disk" in done.stderr
    assert "run the same command again: finished stages are kept" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_permission_to_write(call, tmp_path, tiny_recipe):
    code, _, message = call("run", tiny_recipe(tmp_path, output="/sys/kernel/deploykit"))
    assert code == 2
    assert "no permission for /sys/kernel/deploykit" in message
    assert "`output:` in the recipe" in message


# Artifacts


@pytest.fixture
def artifact(tiny_artifact, tmp_path):
    return tiny_artifact(tmp_path / "artifact").path


def test_no_artifact(call, tmp_path):
    code, _, message = call("show", tmp_path)
    assert code == 2
    assert "is not an artifact: it has no manifest.json" in message


def test_flipped_byte_names_the_file(call, artifact):
    content = bytearray((artifact / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (artifact / "model.onnx").write_bytes(content)
    code, _, message = call("verify", artifact)
    assert code == 2
    assert f"{artifact / 'model.onnx'} was changed after it was made" in message


def test_artifact_of_a_newer_format(call, artifact):
    content = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps({**content, "format_version": 99}))
    code, _, message = call("verify", artifact)
    assert code == 2
    assert "has format version 99, and this deploykit reads 4. Upgrade deploykit" in message


# The installation and the machine


def test_stopped_from_the_keyboard_it_says_so_to_people_and_to_scripts(tmp_path, tiny_recipe):
    command = [sys.executable, "-m", "deploykit", "run", str(tiny_recipe(tmp_path))]
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        assert process.stderr.readline() == "train (full) …\n"
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
    assert process.returncode == 130
    assert told.endswith("error: stopped. Finished stages are kept: the same command goes on from them.\n")
    assert "Traceback" not in told


def test_missing_extra_names_the_pip_command(tmp_path, tiny_recipe):
    """Torch is hidden from the import system, as if it were not installed."""
    code = "import sys; sys.modules['torch'] = None; from deploykit.cli import main; main()"
    command = [sys.executable, "-c", code, "run", str(tiny_recipe(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs the package 'torch', which is not installed" in done.stderr
    assert "pip install '.[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_port_in_use(call, tmp_path, tiny_artifact):
    package = tiny_artifact(tmp_path / "package", kind="package").path
    call("keys", "add", "me", "--keys", tmp_path / "keys.json")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, message = call("serve", package, "--port", port, "--keys", tmp_path / "keys.json")
    assert code == 2
    assert str(port) in message
    assert "--port" in message


def test_serving_without_a_key(call, tmp_path, tiny_artifact):
    package = tiny_artifact(tmp_path / "package", kind="package").path
    code, _, message = call("serve", package, "--keys", tmp_path / "keys.json")
    assert code == 2
    assert "deploykit keys add NAME" in message


def test_unknown_command(call):
    code, _, message = call("trian")
    assert code == 2
    assert "No such command 'trian'" in message


def test_internal_error_hides_its_traceback_unless_asked(monkeypatch, capsys):
    monkeypatch.setattr(cli.methods, "available", lambda kind: 1 / 0)
    for flag in ([], ["--debug"]):
        monkeypatch.setattr(sys, "argv", ["deploykit", *flag, "methods"])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        assert leaving.value.code == 3
        message = capsys.readouterr().err
        assert "internal: ZeroDivisionError" in message
        assert ("Traceback" in message) == bool(flag)


# What works


def test_dry_run_prints_the_recipe_and_the_plan_and_makes_nothing(call, tmp_path, tiny_recipe):
    code, out, _ = call("run", tiny_recipe(tmp_path), "--dry-run", "--set", "seed=7", "--until", "export")
    assert code == 0
    assert "seed: 7" in out
    assert re.findall(r"^(\w+) +\w+ +run ", out, re.MULTILINE) == ["train", "prune", "export"]
    assert not (tmp_path / "runs").exists()


def test_init_writes_a_recipe_that_is_valid(call, tmp_path, tiny_recipe, review_files):
    model = json.loads(tiny_recipe(tmp_path / "other").read_text())["model"]
    flags = ["--name", "mine", "--task", "text-classification", "--model", model]
    path = tmp_path / "recipe.yaml"
    code, _, message = call("init", path, *flags, "--data", review_files / "train.jsonl")
    assert code == 0, message
    code, out, message = call("run", path, "--dry-run")
    assert code == 0, message
    assert "name: mine" in out
    code, _, message = call("init", path, *flags, "--data", "x.jsonl")
    assert code == 2
    assert "exists. Choose another name, or overwrite it with --force" in message


def test_methods_lists_every_folder(call):
    code, out, _ = call("methods")
    assert code == 0
    for name in ("text-classification", "full", "width", "dynamic", "onnxruntime"):
        assert name in out


def test_doctor_says_what_is_there(call):
    code, out, _ = call("doctor")
    assert code == 0
    assert re.search(r"cores allowed +\d", out)
    assert re.search(r"extra train +complete", out)


def test_show_and_json(call, artifact):
    code, out, _ = call("show", artifact, "--json")
    assert code == 0
    assert json.loads(out)["kind"] == "onnx"


def test_verify_counts_the_files(call, artifact):
    code, out, _ = call("verify", artifact)
    assert code == 0
    assert "is as it was made: 3 files checked" in out


def test_an_artifact_is_signed_and_the_signature_verified(call, artifact, tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec
    from forging import write_pair

    private, public = write_pair(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()), b"secret")
    code, _, message = call("sign", artifact, "--key", private)
    assert code == 2
    assert f"the private key {private} cannot be used" in message
    code, out, _ = call("sign", artifact, "--key", private, "--password", "secret")
    assert (code, "is signed: 3 files" in out) == (0, True)
    code, out, _ = call("verify", artifact, "--key", public)
    assert (code, f"signed by the owner of {public}" in " ".join(out.split())) == (0, True)
    (artifact / "model.sig").unlink()
    code, _, message = call("verify", artifact, "--key", public)
    assert (code, "is not signed" in message) == (2, True)


def test_records_become_labelled_rows(call, tmp_path):
    code, _, message = call("records", tmp_path)
    assert (code, "holds no records" in message) == (2, True)
    place = {"time": "2026", "client": "a", "id": "r", "index": 0}
    answer = {**place, "kind": "prediction", "model": "m", "version": "1", "text": "a film", "label": "x"}
    events = [
        answer,
        {**place, "kind": "feedback", "label": "y"},
        {**place, "kind": "feedback", "id": "s", "label": "y"},
    ]
    write_rows(tmp_path / "records-1.jsonl", events)
    code, out, message = call("records", tmp_path, "--to", tmp_path / "rows.jsonl")
    assert code == 0
    assert re.search(r"m 1 +1 +1 +0\.0000 \(0\.0000 to 0\.7935\)", out)
    assert "rows.jsonl holds 1 labelled rows" in out.replace("\n", "")
    assert "left out: 1 feedback without a record, 0 broken lines" in message
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"text": "a film", "label": "y"}


@pytest.mark.parametrize("wrong", [("--days", 0), ("--days", -1), ("--days", 999999999)])
def test_days_that_would_make_no_key_or_one_for_ever_are_refused(call, tmp_path, wrong):
    code, _, message = call("keys", "add", "alice", "--keys", tmp_path / "keys.json", *wrong)
    assert code == 2
    assert "--days" in message
    assert not (tmp_path / "keys.json").exists()


def test_keys_are_added_listed_and_revoked(call, tmp_path):
    keys = tmp_path / "keys.json"
    code, out, _ = call("keys", "add", "alice", "--keys", keys, "--days", 30)
    assert code == 0
    secret = out.strip()
    assert re.fullmatch(r"dk_[0-9a-f]{8}_[\w-]{43}", secret)
    assert secret.split("_", 2)[2] not in keys.read_text()
    _, out, _ = call("keys", "list", "--keys", keys)
    assert "alice" in out
    call("keys", "add", "bob", "--keys", keys, "--per-day", 5000, "--concurrency", 3, "--from", "2030-01-01")
    _, out, _ = call("keys", "list", "--keys", keys)
    assert "from 2030-01-01 00:00, 5,000 a day, 3 at once" in " ".join(out.split())
    code, out, message = call("keys", "rotate", secret[3:11], "--keys", keys, "--hours", 2)
    assert code == 0
    assert re.fullmatch(r"dk_[0-9a-f]{8}_[\w-]{43}", out.strip())
    assert "expires in 2 hours" in message
    for command in ("disable", "enable"):
        _, out, _ = call("keys", command, "bob", "--keys", keys)
        assert out.startswith(f"{command}d: ")
    assert call("keys", "revoke", "alice", "--keys", keys)[0] == 0
    code, _, message = call("keys", "revoke", "alice", "--keys", keys)
    assert code == 2
    assert "alice" in message


def test_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "deploykit", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)
    assert Path(sys.executable).exists()


def test_no_help_text_is_cut_off_at_80_columns():
    environment = {**os.environ, "COLUMNS": "80"}
    for arguments in ([], ["keys"]):
        command = [sys.executable, "-m", "deploykit", *arguments, "--help"]
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert "Commands:" in text
        assert "..." not in text.partition("Commands:")[2]


def test_commands_are_completed():
    environment = {
        **os.environ,
        "_DEPLOYKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": "deploykit re",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-c", "import sys; sys.argv = ['deploykit']; from deploykit.cli import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["records", "retune"]


@pytest.mark.parametrize("command", ["doctor", "methods", "schema"])
def test_a_command_runs_as_a_process(command):
    done = subprocess.run([sys.executable, "-m", "deploykit", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "onnxruntime" in done.stdout
