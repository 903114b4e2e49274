"""Fixtures that need torch: models of every architecture, something to learn, a stage's job.

A plugin of `conftest.py`. Models have two layers, 4 heads and 128 neurons; nothing is downloaded.
"""

import json
import shutil
from copy import deepcopy
from functools import cache
from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest
from rows import classification_loss

from deploykit.modeling.architectures import ARCHITECTURES

TASKS = ("text-classification", "token-classification")
SEPARATE = ["bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"]  # whose layers share nothing
ENCODERS = [*SEPARATE, "albert", "mpnet"]
HEAD_CLASSES = {
    "text-classification": "SequenceClassification",
    "token-classification": "TokenClassification",
    "text-generation": "CausalLM",
    "text2text-generation": "Seq2SeqLM",
}
# Every row of the table with every head that the library has for it.
VARIANTS = [
    *((kind, task) for kind in ENCODERS for task in TASKS),
    *((kind, task) for kind in ("gpt2", "llama") for task in (*TASKS, "text-generation")),
    *(("t5", task) for task in (*TASKS, "text2text-generation")),
    ("marian", "text-generation"),
    ("marian", "text2text-generation"),
]
SIZES = {
    **{"hidden_size": 32, "embedding_size": 32, "num_attention_heads": 4, "intermediate_size": 128},
    **{"max_position_embeddings": 65, "initializer_range": 0.1, "init_std": 0.1},
    **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 0},
}
OWN_SIZES = {
    "distilbert": {"hidden_dim": 128},
    "llama": {"num_key_value_heads": 2},
    "marian": {
        **{"d_model": 32, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "forced_eos_token_id": None},
        **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    },
    "mpnet": {"max_position_embeddings": 66},
    "t5": {"d_ff": 128, "d_kv": 8},
}
LABELS = {"text-classification": ("negative", "positive"), "token-classification": ("O", "B-NAME", "I-NAME")}
TEXTS = (
    "the film is great",
    "awful !",
    "i saw it with my friends , and the script was really clever .",
    "anna lives in london",
    "this story was so boring that we told all of our friends about it",
)


@pytest.fixture(scope="session")
def tiny_encoder(tokenizer):
    """`tiny_encoder(kind="bert", task=..., seed=0, layers=2, **config) -> model` in memory, in evaluation mode.

    Of any type in the table, decoders too; `layers` are those of each stack. Weights are large enough that every
    head and neuron moves the logits.
    """

    def build(kind="bert", task="text-classification", seed=0, layers=2, **config):
        import torch
        import transformers

        labels = LABELS.get(task, LABELS["text-classification"])
        depth = {name: layers for stack in ARCHITECTURES[kind].stacks for name in stack.depth_settings}
        settings = transformers.AutoConfig.for_model(
            kind,
            **{**SIZES, **OWN_SIZES.get(kind, {}), **depth, **config},
            vocab_size=tokenizer.backend.get_vocab_size(),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
        torch.manual_seed(seed)
        model = getattr(transformers, f"AutoModelFor{HEAD_CLASSES[task]}").from_config(
            settings, attn_implementation="eager"
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # zero when new, which would hide one that is lost
                    parameter.normal_(std=0.1)
        return model.eval()

    return build


@pytest.fixture
def reading_again(monkeypatch):
    """Lets `validation_metrics` evaluate models that write: the decoder reads the text again, one place later."""
    import torch

    from deploykit.engines.torch import TorchModel
    from deploykit.modeling import problem

    class Repeating(TorchModel):
        def __init__(self, model, execution):
            super().__init__(model, execution)
            self._shifted = getattr(model, problem.SHIFT_METHOD, None)

        def run(self, batch):
            if self._shifted:
                batch = {**batch, "decoder_input_ids": self._shifted(torch.from_numpy(batch["input_ids"])).numpy()}
            return super().run(batch)

    monkeypatch.setattr(problem, "TorchModel", Repeating)


def repetition():
    """A task of models that write: to say again what was said; see `reading_again`.

    A text counts as right if its tokens have a mean probability of more than a half.
    """
    from deploykit import tasks

    def decode(outputs, features, item, spec):
        ids = features[0].encoding.ids
        share = tasks.softmax(outputs[0]["logits"])[np.arange(len(ids)), ids].mean(keepdims=True)
        return np.log(np.stack([1 - share, share], axis=1) + 1e-9)

    return SimpleNamespace(
        **{
            **vars(tasks.load("text-classification")),
            **{"OUTPUTS": {"logits": ("tokens", "vocabulary")}, "METRICS": ("accuracy",), "decode": decode},
            "TARGETS": {"labels": tasks.Target("logits", "cross_entropy", ("tokens",))},
            "targets": lambda example, features, spec: {"labels": features.encoding.ids},
            "gold": lambda example, spec: np.array([1]),
        }
    )


def set_times(patch, of):
    """Makes the clock of selections say `of(name, engine)` milliseconds, whatever the machine does."""
    from deploykit.artifact import Metric
    from deploykit.artifact.cost import Cost
    from deploykit.evaluation import timing

    def latencies(engines, work, seconds, min_rounds=0):
        times = {name: of(name, engine) for name, engine in engines.items()}
        return {
            name: dict.fromkeys(work.singles, timing.Latency(p50=ms, low=ms, high=ms, p95=ms))
            for name, ms in times.items()
        }

    def rates(engines, work, budgets, seconds, min_rounds=0):  # a little lower for each larger batch
        times = {name: of(name, engine) for name, engine in engines.items()}
        return {
            name: {budget: Metric(value=1000 / ms - budget / 1e6, low=1, high=9999) for budget in budgets}
            for name, ms in times.items()
        }

    patch.setattr(timing, "latencies", latencies)
    patch.setattr(timing, "throughputs", rates)
    patch.setattr(timing, "typical_latencies", lambda predictors, *_: (dict.fromkeys(predictors, 1.0), 0.0))
    patch.setattr(timing, "fit_cost", lambda *_: Cost(fixed=0.25))


@pytest.fixture(scope="module")
def few_rounds():
    """Measures in as few rounds as possible, for tests in which nothing depends on how exact a time is."""
    from deploykit.evaluation import timing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "MAX_ROUNDS", timing.MIN_ROUNDS)
        yield


@pytest.fixture
def one_thread(monkeypatch):
    """Tiny products are slower on several threads, by far where other processes use the same cores."""
    from deploykit import hardware

    monkeypatch.setattr(hardware, "cpu_limit", lambda: 1)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    """The tokenizer of `tokenizer_folder`, cutting at 64 tokens."""
    from deploykit.tokenizer import Tokenizer

    return Tokenizer.load(tokenizer_folder, 64)


def uneven(model):
    """Returns what to keep of each layer, no two neighbours alike."""
    from deploykit.modeling import surgery

    choices = cycle([((0, 3), range(0, 128, 2)), ((2,), (*range(5, 37), 127)), ((0, 1, 2, 3), range(100))])
    return [
        surgery.KeptUnits(heads if size.heads else (), tuple(neurons))
        for size, (heads, neurons) in zip(surgery.shapes(model), choices, strict=False)
    ]


@pytest.fixture(scope="session")
def logits_of(tokenizer):
    """`logits_of(model) -> list of arrays`: what a model in memory says of each of `TEXTS`, each alone.

    A model that writes text is asked for the probabilities of the text itself.
    """

    def run(model):
        import torch

        from deploykit.modeling.problem import model_inputs

        found = []
        for encoding in tokenizer.encode(TEXTS):
            batch = {name: torch.from_numpy(array) for name, array in tokenizer.collate([encoding]).items()}
            with torch.inference_mode():
                found.append(model(**model_inputs(model, {**batch, "labels": batch["input_ids"]})).logits[0].numpy())
        return found

    return run


@pytest.fixture(scope="session")
def dataset_of(review_files, tagged_files):
    """`dataset_of(task) -> Dataset`, loaded from the files."""
    from deploykit import data, tasks
    from deploykit.recipe import DataSection

    @cache
    def build(task="text-classification"):
        files = review_files if task == "text-classification" else tagged_files
        names = {name: str(files / f"{name}.jsonl") for name in ("train", "validation", "test")}
        return data.load(DataSection(**names), tasks.load(task), seed=0)

    return build


@pytest.fixture(scope="session")
def problem_of(dataset_of, tokenizer):
    """`problem_of(task, count=None, seed=0) -> Problem`: `count` limits the training split."""
    from deploykit import tasks
    from deploykit.modeling.problem import Problem

    def build(task="text-classification", count=None, seed=0):
        writes = task == "text2text-generation"
        found, module = (dataset_of(), repetition()) if writes else (dataset_of(task), tasks.load(task))
        spec = tasks.Spec(("wrong", "right") if writes else found.labels, module.Options())
        return Problem.of(module, spec, tokenizer, found.train[:count], found.validation, seed)

    return build


@pytest.fixture(scope="session")
def fitted(tiny_encoder, problem_of, tmp_path_factory):
    """`fitted(task) -> (model, learning curve)`: a BERT that has learned its task; the model is a copy."""
    from deploykit import hardware
    from deploykit.modeling.finetuning import fit
    from deploykit.modeling.options import FitOptions

    @cache
    def learn(task):
        model = tiny_encoder(task=task, seed=1)
        options = FitOptions(epochs=8, learning_rate=5e-3, batch_size=8, bf16="off")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hardware, "cpu_limit", lambda: 1)
            curve = fit(model, problem_of(task), options, classification_loss(), tmp_path_factory.mktemp("fitted"))
        return model.eval(), curve

    def build(task="text-classification"):
        model, curve = learn(task)
        return deepcopy(model), curve

    return build


@pytest.fixture(scope="session")
def sealed_checkpoint(tokenizer_folder, manifest_facts, dataset_of, problem_of):
    """`sealed_checkpoint(target, model, task=...) -> Artifact`: a model in memory as the stage train seals it."""
    from deploykit import artifact
    from deploykit.artifact.execution import Execution
    from deploykit.engines.torch import TorchModel
    from deploykit.evaluation import scoring
    from deploykit.inference.predictor import Predictor
    from deploykit.modeling import checkpoint

    def build(target, model, task="text-classification"):
        found, problem = dataset_of(task), problem_of(task)
        engine = TorchModel(model, Execution(engine="torch"))
        predictions = scoring.predict_all(Predictor(problem.task, problem.spec, problem.tokenizer, engine), found)
        metrics = scoring.compute_metrics(problem.task, problem.spec, found, predictions, 0)
        facts = manifest_facts(
            kind="checkpoint",
            task=task,
            labels=found.labels,
            stage="train",
            method="full",
            execution=Execution(engine="torch"),
        )
        facts["history"] = (
            facts["history"][0].model_copy(update={"stage": "train", "method": "full", "metrics": metrics}),
        )
        with artifact.draft(target) as folder:
            shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
            checkpoint.save(model, folder)
            arrays = {name: problem.task.dump(rows) for name, rows in predictions.items()}
            artifact.save_predictions(folder, arrays | {f"reference.{name}": rows for name, rows in arrays.items()})
            return artifact.seal(folder, target, **facts)

    return build


@pytest.fixture(scope="session")
def job_of(tmp_path_factory, review_files, tagged_files, dataset_of):
    """`job_of(stage, parent, **sections) -> Job` in a folder of its own, for a recipe with these sections."""
    from deploykit import recipe
    from deploykit.stages.context import Job

    def build(stage, parent, task="text-classification", **sections):
        files = review_files if task == "text-classification" else tagged_files
        folder = tmp_path_factory.mktemp(stage)
        content = {"name": "tiny", "task": task, "model": str(folder), "data": {"train": str(files / "train.jsonl")}}
        found = recipe.parse(json.loads(json.dumps({**content, **sections})))
        return Job(found, stage, parent, folder / stage, folder / "work", "k" * 64, "p" * 64, lambda: dataset_of(task))

    return build


@pytest.fixture(scope="session")
def exported_of(tiny_encoder, tmp_path_factory):
    """`exported_of(kind="bert", task=...) -> folder` with the graph and the configuration of `tiny_encoder`."""
    from deploykit.stages import exporting

    @cache
    def build(kind="bert", task="text-classification"):
        folder = tmp_path_factory.mktemp(f"{kind}-{task}")
        exporting.write_graph(tiny_encoder(kind, task), folder, task, 18)
        return folder

    return build
