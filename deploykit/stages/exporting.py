"""The third stage: exports a checkpoint to an ONNX graph, and checks that the graph computes the same as torch.

The graph is exported from the module in memory, because transformers has no class for layers of different sizes.
Attention is exported in its eager form, which graph optimizers recognize and fuse.
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

CHECK_ENGINE = "onnxruntime"  # runs the graph that is compared with torch


def export(job: Job) -> Artifact:
    """Exports the parent's model and compares the graph with it.

    Raises:
        ModelError: the model's own logits are NaN, infinite or too large to compare.
        GateError: logits differ by more than the recipe's `export.tolerance`.
    """
    dataset, options = job.dataset(), job.recipe.export
    if options is None:
        raise RuntimeError("the recipe skips the export")
    model = checkpoint.load(job.required_parent.path)
    preflight.require_one_file(checkpoint.count_parameters(model), job.recipe.model)
    with draft(job.target) as folder:
        write_graph(model, folder, job.task.OPTIMUM_TASK, options.opset, job.task.OUTPUTS)
        job.copy_files(folder)

        reference = job.torch_predictor(model, job.tokenizer(), job.spec())
        engine = engines.load(CHECK_ENGINE).load(
            folder / GRAPH, Execution(engine=CHECK_ENGINE, threads=hardware.cpu_limit())
        )
        differences = parity.difference(reference, engine, dataset.validation)
        _require_same_logits(job, differences, options.tolerance)
        predictor = replace(reference, engine=engine)
        return job.finish(
            folder,
            kind="onnx",
            predictor=predictor,
            predictions=scoring.predict_all(predictor, dataset),
            parameters=checkpoint.count_parameters(model),
            details={"parity": differences, "tolerance": options.tolerance},
        )


def _require_same_logits(job: Job, differences: dict[str, float], tolerance: float) -> None:
    """Raises an error if logits of graph and model differ by more than the tolerance.

    Args:
        job: of the stage.
        differences: the largest difference of logits by name of the batch.
        tolerance: the largest allowed difference.

    Raises:
        ModelError: the model's logits are too large for float32, which explains the difference.
        GateError: the graph computes something else.
    """
    worst = max(differences, key=lambda name: differences[name])
    if differences[worst] <= tolerance:
        return
    logit = max_magnitude(load_predictions(job.required_parent)["validation"])
    if logit > MAX_LOGIT:
        raise ModelError(
            f"the logits of the model reach {logit:.0e}, where float32 is too coarse for a graph to reproduce them"
            f" within {tolerance:.0e}. Train it with a lower learning_rate, or raise export.tolerance."
        )
    raise GateError(
        f"the exported graph does not compute what torch computes: logits differ by {differences[worst]:.2e}"
        f" ({worst}), allowed {tolerance:.0e}. Try another export.opset."
    )
