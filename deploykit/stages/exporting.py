"""The third stage: a checkpoint becomes an ONNX graph that computes the same.

The graph is exported from the module in memory, so that layers of uneven size need no class of their own
in transformers. Attention is exported in its eager form: the fusions of graph optimizers know that one.
"""

from deploykit import engines, hardware
from deploykit.artifact import GRAPH, Artifact, draft, load_predictions
from deploykit.artifact.execution import Execution
from deploykit.engines.torch import TorchModel
from deploykit.errors import GateError, ModelError
from deploykit.evaluation import parity, scoring
from deploykit.graphs.export import write_graph
from deploykit.inference.predictor import Predictor
from deploykit.modeling import checkpoint
from deploykit.modeling.finite import LARGEST_LOGIT, largest
from deploykit.stages import preflight
from deploykit.stages.context import Job

ENGINE = "onnxruntime"


def export(job: Job) -> Artifact:
    """Exports the parent's model and compares the graph with it.

    Args:
        job: of the stage `export`.

    Raises:
        ModelError: the model's own logits are no numbers, or too large to compare.
        GateError: logits differ by more than the recipe's `export.tolerance`.
    """
    dataset, options, threads = job.dataset(), job.recipe.export, hardware.cpu_limit()
    if options is None:
        raise RuntimeError("the recipe skips the export")
    model = checkpoint.load(job.source.path)
    preflight.require_one_file(checkpoint.parameters(model), job.recipe.model)
    with draft(job.target) as folder:
        write_graph(model, folder, job.task.OPTIMUM_TASK, options.opset)
        job.copy(folder)

        reference = Predictor(
            job.task,
            job.source.manifest.labels,
            job.tokenizer(),
            TorchModel(model, Execution(engine="torch", threads=threads)),
        )
        engine = engines.load(ENGINE).load(folder / GRAPH, Execution(engine=ENGINE, threads=threads))
        differences = parity.difference(reference, engine, dataset.validation)
        worst = max(differences, key=lambda name: differences[name])
        if not differences[worst] <= options.tolerance:
            logit = largest(load_predictions(job.source)["validation"])
            if logit > LARGEST_LOGIT:
                raise ModelError(
                    f"the logits of the model reach {logit:.0e}, where float32 is too coarse for a graph to repeat them"
                    f" within {options.tolerance:.0e}. Train it with a lower learning_rate, or raise export.tolerance."
                )
            raise GateError(
                f"the exported graph does not compute what torch computes: logits differ by {differences[worst]:.2e}"
                f" ({worst}), allowed {options.tolerance:.0e}. Try another export.opset."
            )
        exported = Predictor(job.task, reference.labels, reference.tokenizer, engine)
        return job.finish(
            folder,
            kind="onnx",
            predictor=exported,
            scores=scoring.score_all(exported, dataset),
            parameters=checkpoint.parameters(model),
            details={"parity": differences, "tolerance": options.tolerance},
        )
