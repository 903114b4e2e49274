"""The third stage: exports a checkpoint to an ONNX graph, and checks that the graph computes the same.

The graph is exported from the module in memory, because transformers has no class for layers of different sizes.
Attention is exported in its eager form, which the fusions of graph optimizers recognize.
"""

from dataclasses import replace

from deploykit import engines, hardware
from deploykit.artifact import GRAPH, Artifact, draft, load_predictions
from deploykit.artifact.execution import Execution
from deploykit.errors import GateError, ModelError
from deploykit.evaluation import parity, scoring
from deploykit.graphs.export import write_graph
from deploykit.modeling import checkpoint
from deploykit.modeling.losses import MAX_LOGIT, max_magnitude
from deploykit.stages import preflight
from deploykit.stages.context import Job

ENGINE = "onnxruntime"


def export(job: Job) -> Artifact:
    """Exports the parent's model and compares the graph with it.

    Raises:
        ModelError: the model's own logits are NaN, infinite or too large to compare.
        GateError: logits differ by more than the recipe's `export.tolerance`.
    """
    dataset, options = job.dataset(), job.recipe.export
    if options is None:
        raise RuntimeError("the recipe skips the export")
    model = checkpoint.load(job.source.path)
    preflight.require_one_file(checkpoint.count_parameters(model), job.recipe.model)
    with draft(job.target) as folder:
        write_graph(model, folder, job.task.OPTIMUM_TASK, options.opset, job.task.OUTPUTS)
        job.copy(folder)

        reference = job.torch_predictor(model, job.tokenizer(), job.spec())
        engine = engines.load(ENGINE).load(folder / GRAPH, Execution(engine=ENGINE, threads=hardware.cpu_limit()))
        differences = parity.difference(reference, engine, dataset.validation)
        _check(job, differences, options.tolerance)
        predictor = replace(reference, engine=engine)
        return job.finish(
            folder,
            kind="onnx",
            predictor=predictor,
            predictions=scoring.predict_all(predictor, dataset),
            parameters=checkpoint.count_parameters(model),
            details={"parity": differences, "tolerance": options.tolerance},
        )


def _check(job: Job, differences: dict[str, float], tolerance: float) -> None:
    """Compares the differences of logits, by batch, with the tolerance; see `export` for the errors."""
    worst = max(differences, key=lambda name: differences[name])
    if differences[worst] <= tolerance:
        return
    logit = max_magnitude(load_predictions(job.source)["validation"])
    if logit > MAX_LOGIT:
        raise ModelError(
            f"the logits of the model reach {logit:.0e}, where float32 is too coarse for a graph to reproduce them"
            f" within {tolerance:.0e}. Train it with a lower learning_rate, or raise export.tolerance."
        )
    raise GateError(
        f"the exported graph does not compute what torch computes: logits differ by {differences[worst]:.2e}"
        f" ({worst}), allowed {tolerance:.0e}. Try another export.opset."
    )
