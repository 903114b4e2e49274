import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from deploykit import methods, recipe, tasks
from deploykit.errors import RecipeError

MINIMAL = {"name": "reviews", "task": "text-classification", "model": "owner/model", "data": {"train": "owner/data"}}


def mistakes(content):
    with pytest.raises(RecipeError) as caught:
        recipe.parse(content)
    return str(caught.value).split("\n  - ")


def write(folder, content=None, text=None):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content or MINIMAL) if text is None else text, encoding="utf-8")
    return path


def test_a_missing_recipe_says_how_to_write_one(tmp_path):
    with pytest.raises(RecipeError, match=r"^there is no recipe .*/recipe\.yaml\. Write one with: deploykit init$"):
        recipe.load(tmp_path / "recipe.yaml")


def test_a_directory_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot be read: Is a directory\."):
        recipe.load(tmp_path)


def test_a_recipe_that_is_not_utf8_or_not_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(RecipeError, match=r"recipe\.yaml is not UTF-8 \(byte 9\)\. Save it as UTF-8"):
        recipe.load(path)
    with pytest.raises(RecipeError, match=r"recipe\.yaml is not YAML: (?s:.*)line 1, column 7"):
        recipe.load(write(tmp_path, text="name: [unclosed"))


@pytest.mark.parametrize(("text", "found"), [("", "NoneType"), ("- a\n- b", "list"), ("words", "str")])
def test_a_recipe_must_hold_keys(tmp_path, text, found):
    with pytest.raises(RecipeError, match=rf"must hold keys and values, found {found}\."):
        recipe.load(write(tmp_path, text=text))


def test_yaml_that_would_make_python_objects_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="is not YAML: could not determine a constructor"):
        recipe.load(write(tmp_path, text="name: !!python/object/apply:os.system ['true']"))


def test_all_mistakes_are_listed_at_once():
    content = {
        **MINIMAL,
        "name": "Bad Name",
        "task": "text-clasification",
        "sede": 1,
        "data": {"train": "a.csv", "lable": "y", "test_share": 0.7},
        "export": {"opset": 99},
        "gates": {"max_drop": -1},
        "quantize": {"bits": 8},
    }
    head, *found = mistakes(content)
    columns = sorted({role for name in methods.available("task") for role in tasks.load(name).COLUMNS})
    assert head == "the recipe has 8 mistakes:"
    assert found == [
        "name: String should match pattern '^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$', got 'Bad Name'",
        "data.test_share: Input should be less than 0.5, got 0.7",
        "export.opset: Input should be less than or equal to 20, got 99",
        "quantize: needs `method:`, the name of one of its methods, got {'bits': 8}",
        "gates.max_drop: Input should be greater than or equal to 0, got -1",
        "sede: unknown key (did you mean 'seed'?). Known: name, task, model, revision, data, labels, seed, output,"
        " train, prune, export, quantize, gates, package, serve.",
        "task: no task is called 'text-clasification' (did you mean 'text-classification'?). There are:"
        f" {', '.join(methods.available('task'))}.",
        "data.lable: unknown key (did you mean 'label'?). Known: train, validation, test, validation_share, test_share,"
        f" format, slice, max_tokens, allow_leakage, {', '.join(columns)}.",
    ]


@pytest.mark.parametrize("name", ["name", "task", "model", "data"])
def test_what_has_no_default_must_be_there(name):
    assert mistakes({key: value for key, value in MINIMAL.items() if key != name}) == [
        "the recipe has 1 mistake:",
        f"{name}: is missing",
    ]


def test_options_of_a_method_are_checked_with_its_own_names():
    _, unknown, method = mistakes({**MINIMAL, "train": {"method": "full", "epoch": 1}, "prune": {"method": "widht"}})
    assert unknown.startswith("train.epoch: unknown key (did you mean 'epochs'?). Known: method, ")
    assert re.match(r"prune: no pruner is called 'widht' \(did you mean 'width'\?\)\. There are: ", method)


def test_options_of_a_method_out_of_range_are_listed():
    assert mistakes({**MINIMAL, "train": {"method": "full", "epochs": "many"}})[1].startswith(
        "train.epochs: Input should"
    )


@pytest.mark.parametrize("section", [3, [], ["width"], [{"method": "width"}, "layers"], "width"])
def test_pruning_is_a_method_or_a_list_of_methods(section):
    (_, found) = mistakes({**MINIMAL, "prune": section})
    assert found == f"prune: must be a mapping with `method:`, a list of such mappings, or null, got {section!r}"


def test_mistakes_in_steps_are_listed_with_their_places():
    steps = [{"method": "vocabulray"}, {"method": "width", "keep": 2, "kep": 1}, {"keep": 4}, {"method": "layers"}]
    head, *found = mistakes({**MINIMAL, "prune": steps})
    assert head == "the recipe has 4 mistakes:"
    assert found[0].startswith("prune[0]: no pruner is called 'vocabulray' (did you mean 'vocabulary'?). There are: ")
    assert found[1].startswith("prune[1].keep: Input should be less than or equal to 1, got 2")
    assert found[2].startswith("prune[1].kep: unknown key (did you mean 'keep'?). Known: method, keep, ")
    assert found[3] == "prune[2]: needs `method:`, the name of one of its methods, got {'keep': 4}"


def test_only_pruning_has_steps():
    found = mistakes({**MINIMAL, "train": [{"method": "full"}]})
    assert found[1].startswith("train: Input should be a valid dictionary")


def test_steps_have_their_options_in_order(tmp_path):
    steps = [{"method": "vocabulary", "corpus": "corpus.txt"}, {"method": "layers", "keep": 4}, {"method": "width"}]
    found = recipe.load(write(tmp_path, {**MINIMAL, "prune": steps}))
    assert found.method("prune") == "vocabulary+layers+width"
    assert [name for name, _ in found.steps("prune")] == ["vocabulary", "layers", "width"]
    assert [options.keep for _, options in found.steps("prune")[1:]] == [4, 0.75]
    assert found.files("prune") == [tmp_path / "corpus.txt"]
    assert found.files("train") == found.files("export") == []
    resolved = found.resolved()["prune"]
    assert [step["method"] for step in resolved] == ["vocabulary", "layers", "width"]
    assert resolved[0]["corpus"] == str(tmp_path / "corpus.txt")
    assert found.options("prune").model_dump() == {"steps": tuple(resolved)}
    assert recipe.parse(found.model_dump()).resolved() == found.resolved()


def test_a_method_alone_has_options_and_one_step(tmp_path):
    found = recipe.load(write(tmp_path, {**MINIMAL, "prune": {"method": "layers", "keep": 4}}))
    assert found.method("prune") == "layers"
    assert found.steps("prune") == [("layers", found.options("prune"))]
    assert found.resolved()["prune"]["keep"] == 4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prune[1].keep=3", [0.5, 3]),
        ("prune[0].keep=0.25", [0.25, 4]),
        ("prune[1]={method: layers, keep: 2}", [0.5, 2]),
    ],
)
def test_an_override_may_be_about_one_of_several_steps(tmp_path, override, expected):
    steps = [{"method": "width", "keep": 0.5}, {"method": "layers", "keep": 4}]
    found = recipe.load(write(tmp_path, {**MINIMAL, "prune": steps}), [override])
    assert [options.keep for _, options in found.steps("prune")] == expected


@pytest.mark.parametrize("override", ["prune.keep=3", "prune[2].keep=3", "prune[2]=null"])
def test_an_override_about_a_step_that_there_is_not_is_refused(tmp_path, override):
    steps = [{"method": "width"}, {"method": "layers", "keep": 4}]
    message = (
        rf"^--set {re.escape(repr(override))} is about a list of 2 steps: name one by its number, as in prune\[0\]"
    )
    with pytest.raises(RecipeError, match=message):
        recipe.load(write(tmp_path, {**MINIMAL, "prune": steps}), [override])


def test_an_override_of_the_only_method_needs_no_number(tmp_path):
    found = recipe.load(write(tmp_path, {**MINIMAL, "prune": {"method": "width"}}), ["prune.keep=0.5"])
    assert found.options("prune").keep == 0.5


UNSET = dict.fromkeys(("abstain_below", "abstain_accuracy", "positive_label"))


@pytest.mark.parametrize(("task", "unset"), [("text-classification", UNSET), ("token-classification", {})])
def test_a_task_has_options_or_is_a_name(tmp_path, task, unset):
    named = recipe.load(write(tmp_path, {**MINIMAL, "task": task}))
    assert (named.task, named.task_name, named.task_options().max_windows) == (task, task, 16)
    found = recipe.load(write(tmp_path, {**MINIMAL, "task": {"method": task, "max_windows": 3}}))
    assert (found.task_name, found.task_options().max_windows) == (task, 3)
    assert found.resolved()["task"] == {"method": task, "max_windows": 3, **unset}
    assert named.resolved()["task"] == {"method": task, "max_windows": 16, **unset}
    assert recipe.parse(named.resolved()).resolved() == named.resolved()


def test_options_of_a_task_are_checked():
    def about(**task):
        return mistakes({**MINIMAL, "task": task})[1:]

    assert about(method="text-classification", max_windows=0) == [
        "task.max_windows: Input should be greater than or equal to 1, got 0"
    ]
    assert about(method="token-classification", max_window=2) == [
        "task.max_window: unknown key (did you mean 'max_windows'?). Known: method, max_windows."
    ]
    assert about(method="text-classification", abstain_below=0.5, abstain_accuracy=0.9) == [
        "task: set either abstain_below or abstain_accuracy, from which abstain_below is tuned,"
        " got {'abstain_below': 0.5, 'abstain_accuracy': 0.9}"
    ]
    assert about(max_windows=2) == ["task: needs `method:`, the name of one of its methods, got {'max_windows': 2}"]
    (unknown,) = about(method="text-clasification", max_windows=2)
    assert unknown.startswith("task: no task is called 'text-clasification' (did you mean 'text-classification'?)")


@pytest.mark.parametrize("task", ["text-classification", {"method": "text-classification"}])
def test_an_override_may_be_about_the_task(tmp_path, task):
    found = recipe.load(write(tmp_path, {**MINIMAL, "task": task}), ["task.max_windows=3"])
    assert found.task == {"method": "text-classification", "max_windows": 3}
    found = recipe.load(write(tmp_path, {**MINIMAL, "task": task}), ["task=token-classification"])
    assert found.task_name == "token-classification"


@pytest.mark.parametrize("task", ["text-classification", {"method": "text-classification"}])
def test_windows_of_the_service_are_now_those_of_the_task(tmp_path, task, caplog):
    content = {**MINIMAL, "task": task, "serve": {"max_windows": 3, "max_batch_items": 8}}
    before = json.dumps(content)
    found = recipe.load(write(tmp_path, content))
    assert (found.task_name, found.task_options().max_windows, found.serve.max_batch_items) == (MINIMAL["task"], 3, 8)
    warning = "serve.max_windows is now an option of the task: task: {method: ..., max_windows: ...}"
    assert caplog.messages == [warning]
    assert "max_windows" not in found.resolved()["serve"]
    recipe.parse(found.resolved())
    assert caplog.messages == [warning]
    recipe.parse(content)
    assert json.dumps(content) == before
    by_override = recipe.load(write(tmp_path, {**MINIMAL, "task": task}), ["serve.max_windows=3"])
    assert by_override.task_options() == found.task_options()


def test_the_option_of_the_task_wins_over_the_earlier_key():
    task = {"method": "text-classification", "max_windows": 5}
    assert recipe.parse({**MINIMAL, "task": task, "serve": {"max_windows": 3}}).task_options().max_windows == 5


def test_mistakes_about_the_earlier_key_are_listed():
    serve = {"max_windows": 0}
    assert mistakes({**MINIMAL, "serve": serve})[1:] == [
        "task.max_windows: Input should be greater than or equal to 1, got 0"
    ]
    missing = {key: value for key, value in MINIMAL.items() if key != "task"}
    assert mistakes({**missing, "serve": serve})[1:] == ["task: is missing"]


@pytest.mark.parametrize("task", [5, None, ["text-classification"]])
@pytest.mark.parametrize("serve", [{}, {"max_windows": 3}])
def test_a_task_is_a_name_or_a_mapping(task, serve):
    message = f"task: must be the name of a task, or a mapping with `method:` and its options, got {task!r}"
    assert mistakes({**MINIMAL, "task": task, "serve": serve})[1:] == [message]


def test_a_method_can_not_be_a_path():
    (_, found) = mistakes({**MINIMAL, "train": {"method": "../../cli"}})
    assert found.startswith("train: no trainer is called '../../cli'")


@pytest.mark.parametrize("override", ["seed", "=1", "a b=1", "data..train=x", "1a=2"])
def test_an_override_must_be_key_and_value(tmp_path, override):
    with pytest.raises(RecipeError, match=rf"^--set takes key=value .* got {re.escape(repr(override))}\.$"):
        recipe.load(write(tmp_path), [override])


def test_an_override_must_be_yaml(tmp_path):
    with pytest.raises(RecipeError, match=r"the value of --set 'seed=\[1' is not YAML"):
        recipe.load(write(tmp_path), ["seed=[1"])


def test_an_override_with_an_unknown_key_is_a_mistake_of_the_recipe(tmp_path):
    with pytest.raises(
        RecipeError, match=r"recipe\.yaml has 1 mistake:\n  - gates\.max_dorp: unknown key \(did you mean"
    ):
        recipe.load(write(tmp_path), ["gates.max_dorp=0.1"])


def test_overrides_come_on_top_and_are_yaml(tmp_path):
    overrides = ["seed=7", "gates.max_drop=0.02", "prune=null", "data.text_pair=b", "gates.max_flips=0.1"]
    found = recipe.load(write(tmp_path), overrides)
    assert (found.seed, found.prune, found.data.columns["text_pair"]) == (7, None, "b")
    assert (found.gates.max_drop, found.gates.max_flips) == (0.02, 0.1)


def test_without_a_graph_nothing_is_quantized_or_packaged(tmp_path):
    for others in ([], ["quantize=null"], ["package=null"]):
        with pytest.raises(RecipeError, match="export: null writes no graph for quantize and package: set both"):
            recipe.load(write(tmp_path), ["export=null", *others])
    assert recipe.load(write(tmp_path), ["export=null", "quantize=null", "package=null"]).export is None


def test_defaults(tmp_path):
    found = recipe.parse(MINIMAL, tmp_path)
    assert found.train == {"method": "full"}
    assert found.prune is None
    assert found.quantize == {"method": "dynamic"}
    assert (found.seed, found.gates.max_drop, found.export.opset) == (0, 0.01, 18)
    assert found.output == str(tmp_path / "runs" / "reviews")
    assert (found.method("train"), found.method("export")) == ("full", "export")


def test_a_recipe_is_frozen():
    with pytest.raises(ValidationError, match="Instance is frozen"):
        recipe.parse(MINIMAL).seed = 1


def test_what_came_in_is_as_it_was():
    before = json.dumps(MINIMAL)
    recipe.parse(MINIMAL)
    assert json.dumps(MINIMAL) == before


def test_paths_start_from_the_directory_of_the_recipe(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "train.csv").write_text("")
    content = {**MINIMAL, "model": "model", "data": {"train": "train.csv", "test": "absent.jsonl"}, "output": "out"}
    found = recipe.load(write(tmp_path, content))
    assert found.model == str(tmp_path / "model")
    assert found.data.train == str(tmp_path / "train.csv")
    assert found.data.test == str(tmp_path / "absent.jsonl")
    assert found.data.validation is None
    assert found.output == str(tmp_path / "out")


def test_paths_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    content = {**MINIMAL, "model": "~/model", "data": {"train": "~/a.csv.GZ"}, "output": "~/runs"}
    found = recipe.parse(content, tmp_path / "elsewhere")
    assert (found.model, found.data.train, found.output) == tuple(
        str(tmp_path / name) for name in ("model", "a.csv.GZ", "runs")
    )
    assert recipe.parse({**MINIMAL, "data": {"train": "~nobody-of-this-name/a.csv"}}, tmp_path).data.train == str(
        tmp_path / "~nobody-of-this-name" / "a.csv"
    )


@pytest.mark.parametrize("model", ["owner/model", "package://module/model"])
def test_what_is_no_path_stays_as_it_is(tmp_path, model):
    found = recipe.load(write(tmp_path, {**MINIMAL, "model": model, "data": {"train": "owner/data", "test": "dev"}}))
    assert (found.model, found.data.train, found.data.test) == (model, "owner/data", "dev")


def test_options_are_those_of_the_method_with_defaults_filled_in():
    found = recipe.parse({**MINIMAL, "train": {"method": "full", "epochs": 2}, "package": None})
    assert found.options("train").epochs == 2
    assert found.options("export") == recipe.ExportSection()
    assert found.options("package").model_dump() == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.csv", True),
        ("a.tsv", True),
        ("b/a.jsonl", True),
        ("a.json", True),
        ("a.parquet", True),
        ("owner/name", False),
    ],
)
def test_files_are_told_from_ids_of_the_hub(source, expected):
    assert recipe.is_file(source) is expected


SHIPPED = sorted(Path(str(resources.files("deploykit"))).glob("recipe/shipped/*.yaml"))
MEASURED = sorted((Path(__file__).parents[2] / "benchmarks").glob("recipes/*.yaml"))


def test_recipes_are_shipped():
    assert SHIPPED
    assert MEASURED


@pytest.mark.parametrize("path", [*SHIPPED, *MEASURED], ids=lambda path: f"{path.parents[1].name}-{path.name}")
def test_recipes_that_are_shipped_are_valid(path):
    assert recipe.load(path).name == path.stem


def test_parts_of_an_epoch_are_epochs():
    from deploykit.modeling.options import DistillOptions, FitOptions

    assert (FitOptions(epochs=0.5).epochs, FitOptions(epochs=3).model_dump(mode="json")["epochs"]) == (0.5, 3)
    half = DistillOptions().model_copy(update={"epochs": 0.5})
    assert DistillOptions.model_validate(half.model_dump()) == half
    for epochs in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epochs"):
            FitOptions(epochs=epochs)


@pytest.mark.parametrize("override", ["train.learning_rate=.inf", "export.tolerance=.inf", "serve.timeout_s=.inf"])
def test_infinite_numbers_are_refused(tmp_path, tiny_recipe, override):
    with pytest.raises(RecipeError, match=r"should be a finite number"):
        recipe.load(tiny_recipe(tmp_path), [override])


def test_a_recipe_is_read_without_torch(tmp_path, tiny_recipe):
    prune = [{"method": "vocabulary"}, {"method": "layers", "keep": 1}, {"method": "width", "keep": 0.5, "distill": {}}]
    path = tiny_recipe(tmp_path, prune=prune, quantize={"method": "dynamic"})
    code = "import sys; from deploykit import recipe; recipe.load(sys.argv[1]); print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert {"deploykit.pruners.width", "torch"} & {*process.stdout.split()} == {"deploykit.pruners.width"}


HEADS = {"method": "multi-task", "heads": {"mood": {"method": "text-classification", "columns": {"label": "mood"}}}}


def test_data_may_name_a_file_for_each_head(tmp_path):
    content = {**MINIMAL, "task": HEADS, "data": {"train": {"mood": "moods.csv", "stars": "~/stars.csv"}}}
    parsed = recipe.parse(content, tmp_path)
    assert parsed.data.train["mood"] == str(tmp_path / "moods.csv")
    assert "~" not in parsed.data.train["stars"]
    assert parsed.data.columns == {"head": "head"}
    assert recipe.parse({**content, "data": parsed.data.model_dump()}).data == parsed.data


def test_only_a_task_with_heads_takes_several_files():
    found = mistakes({**MINIMAL, "data": {"train": {"mood": "moods.csv"}}})
    assert found[1:] == ["data.train: names several files, and text-classification has no heads. Name one file."]


@pytest.mark.parametrize("source", [3, [], {}, {"mood": 3}, ["a.csv"]], ids=repr)
def test_other_sources_are_refused(source):
    found = mistakes({**MINIMAL, "task": HEADS, "data": {"train": source}})
    assert found[1:] == [
        f"data.train: must be a file, a directory or a data set, or a file for each head, got {source}"
    ]


def test_mistakes_in_a_head_are_named_with_the_head():
    found = mistakes(
        {**MINIMAL, "task": {"method": "multi-task", "heads": {"mood": {"method": "regression", "column": 1}}}}
    )
    assert found[1:] == [
        "task.heads.mood.column: unknown key (did you mean 'columns'?). Known: method, columns, options, labels."
    ]


@pytest.mark.parametrize(
    ("task", "sections", "message"),
    [
        ("regression", {"gates": {"max_flips": 0.1}}, "gates.max_flips: regression has nothing to measure for it"),
        ("question-answering", {"gates": {"max_label_drop": 0.1}}, "gates.max_label_drop: question-answering has"),
        ("multi-label-classification", {"gates": {"max_calibration_shift": 0}}, "gates.max_calibration_shift: multi"),
        ("regression", {"train": {"method": "full", "class_weights": "balanced"}}, "train.class_weights: regression"),
        ("multi-task", {"train": {"method": "full", "class_weights": "balanced"}}, "train.class_weights: multi-task"),
    ],
)
def test_options_that_would_have_no_effect_on_the_task_are_refused(task, sections, message):
    content = {"name": "a", "task": task, "model": "m/m", "data": {"train": "a.csv"}, **sections}
    with pytest.raises(RecipeError, match=re.escape(message)):
        recipe.parse(content)
    kept = {"gates": {"max_flips": 0.1}, "train": {"method": "full", "class_weights": "balanced"}}
    recipe.parse({**content, **kept, "task": "text-classification"})
