import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from deploykit import methods
from deploykit.errors import MethodError, MissingExtraError


@pytest.mark.parametrize("name", ["text_classification", "../artifact", "os", "__init__", "", "text-classification.py"])
def test_a_name_that_the_folder_does_not_list_is_never_imported(name, monkeypatch):
    monkeypatch.setattr(methods, "import_module", lambda _: pytest.fail("imported"))
    with pytest.raises(
        MethodError, match=rf"^no task is called {re.escape(repr(name))}.*\. There are: .*\btext-classification, "
    ):
        methods.load("task", name)


def test_the_nearest_name_is_offered():
    with pytest.raises(
        MethodError, match=r"'text-clasification' \(did you mean 'text-classification'\?\)\. There are:"
    ):
        methods.load("task", "text-clasification")


@pytest.mark.parametrize(
    ("kind", "name", "package", "extra"),
    [
        ("engine", "onnxruntime", "onnxruntime", "cpu"),
        ("engine", "openvino", "openvino", "openvino"),
        ("trainer", "full", "torch", "train"),
        ("quantizer", "static", "onnxruntime.quantization", "cpu"),
        ("task", "text-classification", "seqeval", "train"),
    ],
)
def test_a_missing_package_becomes_the_command_that_adds_it(monkeypatch, kind, name, package, extra):
    def refuse(_):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(methods, "import_module", refuse)
    top = package.partition(".")[0]
    message = rf"the {kind} '{name}' needs the package '{top}', .* pip install '\.\[{extra}\]'"
    with pytest.raises(MissingExtraError, match=message):
        methods.load(kind, name)


def test_a_package_that_is_installed_and_broken_is_named_and_our_own_defect_stays_one(monkeypatch):
    errors = {
        "library": ImportError("libtbb.so.12: cannot open shared object file"),
        "ours": ImportError("cannot import name 'x'", name="deploykit.tasks"),
    }

    def refuse(kind):
        def raised(_):
            raise errors[kind]

        return raised

    monkeypatch.setattr(methods, "import_module", refuse("library"))
    with pytest.raises(MissingExtraError, match=r"cannot be imported: libtbb\.so\.12.*is installed, but broken"):
        methods.load("engine", "openvino")
    monkeypatch.setattr(methods, "import_module", refuse("ours"))
    with pytest.raises(ImportError, match="cannot import name 'x'"):
        methods.load("engine", "openvino")


@pytest.mark.parametrize("name", ["deploykit.nothing", None])
def test_a_missing_module_of_our_own_stays_a_defect(name):
    error = ModuleNotFoundError("No module", name=name)
    assert methods.explain_missing_module(error, "anything") is error


def test_options_are_frozen_and_refuse_unknown_keys():
    class Options(methods.Options):
        keep: float = 0.5

    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Options(kep=1)
    with pytest.raises(ValidationError, match="Instance is frozen"):
        Options().keep = 1


@pytest.mark.parametrize("kind", methods.METHOD_FOLDERS)
def test_each_file_of_a_folder_is_a_method_and_helpers_are_none(kind):
    folder = Path(methods.__file__).parent / methods.METHOD_FOLDERS[kind]
    names = methods.available(kind)
    assert list(names) == sorted(names) != []
    assert {name.replace("-", "_") for name in names} == {file.stem for file in folder.glob("[!_]*.py")}


def test_load_gives_the_module():
    assert methods.load("task", "token-classification").__name__ == "deploykit.tasks.token_classification"


def test_did_you_mean_is_silent_where_nothing_is_near():
    assert methods.did_you_mean("zzz", ("train", "test")) == ""
    assert methods.did_you_mean("tain", ["train", "test"]) == " (did you mean 'train'?)"
