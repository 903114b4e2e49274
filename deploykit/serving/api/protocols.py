"""The ways to ask: our own, the Open Inference Protocol (version 2), and the shape of Hugging Face's inference API.

Each is the type of a body, how texts are read from it, and how answers are written; what happens in between is the
same. Clients that exist for one of the other two work with nothing but another address.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from deploykit import __version__
from deploykit.artifact import Manifest
from deploykit.serving.access.keys import Scope
from deploykit.serving.api import schemas
from deploykit.serving.api.schemas import EXAMPLE, Wire
from deploykit.tasks import Task

TEXT, PAIR = "text", "text_pair"  # the tensors of the Open Inference Protocol
MOST_DIMENSIONS, MOST_OUTPUTS = 8, 16  # before they are multiplied, and before each gets a mistake of its own
Texts = tuple[list[str], list[str] | None]


@dataclass(frozen=True)
class Protocol:
    """One way to ask.

    Args:
        name: of the operation in the API's description.
        path: where it is asked.
        request: the type of its body.
        response: what its answers are, for the description.
        read: returns the texts of a body, and the second ones of pairs.
        write: returns what is sent, of the body and its answers.
        scope: what a key must open.
        counted: whether the answers are counted as predictions.
    """

    name: str
    path: str
    request: type[BaseModel]
    response: Any
    read: Callable[[Any], Texts]
    write: Callable[[Any, Sequence[BaseModel]], Any]
    scope: Scope = "predict"
    counted: bool = True


class Tensor(Wire):
    """A tensor of the Open Inference Protocol; its data may be nested as its shape is, and become flat."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST_DIMENSIONS)]
    datatype: Literal["BYTES", "FP32"]
    data: list[Any]
    parameters: dict[str, Any] | None = None

    @field_validator("data")
    @classmethod
    def _flat(cls, data: list[Any], known: ValidationInfo) -> list[Any]:
        for size in known.data.get("shape", [])[1:]:
            if not all(isinstance(part, list) and len(part) == size for part in data):
                break
            data = [one for part in data for one in part]
        return data


class Wanted(Wire):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] | None = None


class InferResponse(Wire):
    """What the Open Inference Protocol answers."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


def predict(manifest: Manifest, task: Task) -> Protocol:
    """Returns our own way: typed for this model and task."""
    request, response = schemas.request_model(manifest), schemas.response_model(task)
    model = schemas.Model(name=manifest.name, version=version_of(manifest))

    def write(_: BaseModel, answers: Sequence[BaseModel]) -> BaseModel:
        return response.model_construct(predictions=list(answers), model=model)

    return Protocol("predict", "/v1/predict", request, response, _texts, write)


def infer(manifest: Manifest, task: Task) -> Protocol:
    """Returns the Open Inference Protocol: tensors of texts in; answers as JSON, and labels and scores, out."""
    names = [TEXT, PAIR] if manifest.pair else [TEXT]
    outputs = [output["name"] for output in _outputs(manifest, task)]

    class InferRequest(Wire):
        """Texts as tensors of the datatype BYTES, one element a text."""

        model_config = ConfigDict(
            json_schema_extra={
                "example": {
                    "inputs": [{"name": name, "shape": [1], "datatype": "BYTES", "data": [EXAMPLE]} for name in names]
                }
            }
        )

        id: str | None = Field(default=None, max_length=128)
        inputs: list[Tensor] = Field(max_length=2)
        outputs: list[Wanted] | None = Field(default=None, max_length=MOST_OUTPUTS)
        parameters: dict[str, Any] | None = None

        @model_validator(mode="after")
        def _holds_texts(self) -> "InferRequest":
            if sorted(found.name for found in self.inputs) != sorted(names):
                raise ValueError(f"inputs must be the tensors {' and '.join(names)}")
            for found in self.inputs:
                if found.datatype != "BYTES" or not all(isinstance(text, str) for text in found.data):
                    raise ValueError(f"the tensor {found.name} must hold texts, of the datatype BYTES")
                if len(found.data) != _product(found.shape):
                    raise ValueError(f"the tensor {found.name} holds {len(found.data)} texts, its shape says otherwise")
                if len(found.data) != len(self.inputs[0].data):
                    raise ValueError(f"the tensors {' and '.join(names)} hold different numbers of texts")
                if not 1 <= len(found.data) <= manifest.serve.max_texts:
                    raise ValueError(f"from 1 to {manifest.serve.max_texts} texts are answered at once")
            for output in self.outputs or ():
                if output.name not in outputs:
                    raise ValueError(f"outputs may be {', '.join(outputs)}")
            return self

    def read(asked: InferRequest) -> Texts:
        found = {tensor.name: tensor.data for tensor in asked.inputs}
        return found[TEXT], found.get(PAIR)

    def write(asked: InferRequest, answers: Sequence[BaseModel]) -> dict[str, Any]:
        wanted = None if asked.outputs is None else {output.name for output in asked.outputs}
        made = [tensor for tensor in _tensors(answers, manifest.labels) if wanted is None or tensor.name in wanted]
        made_of = InferResponse(model_name=manifest.name, model_version=version_of(manifest), id=asked.id, outputs=made)
        return made_of.model_dump(exclude_none=True)

    return Protocol("infer", f"{model_path(manifest)}/infer", InferRequest, InferResponse, read, write)


def pipeline(manifest: Manifest, task: Task) -> Protocol:
    """Returns Hugging Face's way: `inputs` in, what transformers' pipelines return out."""
    most = manifest.serve.max_texts
    single: Any = schemas.Pair if manifest.pair else str

    class Parameters(BaseModel):
        """What may be said of the answers; what does not concern this task is let pass."""

        top_k: int | None = Field(default=None, ge=1, description="the most labels of each answer")
        function_to_apply: Literal["softmax"] | None = Field(default=None, description="scores are probabilities")
        aggregation_strategy: Literal["simple", "first", "average", "max"] | None = Field(
            default=None, description="of entities, whole ones are answered, each word by its first token"
        )

    class PipelineRequest(BaseModel):
        """One input, or a list of them."""

        model_config = ConfigDict(json_schema_extra={"example": {"inputs": schemas.example(manifest.pair)}})

        inputs: single | Annotated[list[single], Field(min_length=1, max_length=most)]
        parameters: Parameters | None = None
        options: dict[str, Any] = {}

    def read(asked: PipelineRequest) -> Texts:
        found = asked.inputs if isinstance(asked.inputs, list) else [asked.inputs]
        if manifest.pair:
            return [one.text for one in found], [one.text_pair for one in found]
        return found, None

    def write(asked: PipelineRequest, answers: Sequence[BaseModel]) -> Any:
        top_k = None if asked.parameters is None else asked.parameters.top_k
        found = [task.pipeline(answer, top_k) for answer in answers]
        return found if isinstance(asked.inputs, list) or task.PIPELINE_NESTED else found[0]

    return Protocol("pipeline", f"/models/{manifest.name}", PipelineRequest, list[Any], read, write)


def version_of(manifest: Manifest) -> str:
    """Returns the version that answers name: the beginning of the package's key."""
    return manifest.key[:12]


def model_path(manifest: Manifest) -> str:
    """Returns where the Open Inference Protocol has the model."""
    return f"/v2/models/{manifest.name}"


def server_metadata() -> bytes:
    """Describes the server, as the Open Inference Protocol wants it."""
    return json.dumps({"name": "deploykit", "version": __version__, "extensions": []}).encode()


def model_metadata(manifest: Manifest, task: Task) -> bytes:
    """Describes the model, as the Open Inference Protocol wants it."""
    names = [TEXT, PAIR] if manifest.pair else [TEXT]
    content = {
        "name": manifest.name,
        "versions": [version_of(manifest)],
        "platform": f"{manifest.execution.engine}_onnx",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in names],
        "outputs": _outputs(manifest, task),
    }
    return json.dumps(content).encode()


def _outputs(manifest: Manifest, task: Task) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "answer", "datatype": "BYTES", "shape": [-1]}]
    if "label" in task.Answer.model_fields:
        found.append({"name": "label", "datatype": "BYTES", "shape": [-1]})
    if "scores" in task.Answer.model_fields:
        found.append({"name": "scores", "datatype": "FP32", "shape": [-1, len(manifest.labels)]})
    return found


def _texts(asked: Any) -> Texts:
    return asked.texts, getattr(asked, "text_pairs", None)


def _tensors(answers: Sequence[BaseModel], labels: Sequence[str]) -> list[Tensor]:
    count, fields = len(answers), type(answers[0]).model_fields
    found = [
        Tensor(name="answer", shape=[count], datatype="BYTES", data=[answer.model_dump_json() for answer in answers])
    ]
    if "label" in fields:
        data = [getattr(answer, "label") for answer in answers]  # noqa: B009
        found.append(Tensor(name="label", shape=[count], datatype="BYTES", data=data))
    if "scores" in fields:
        scores = [getattr(answer, "scores")[label] for answer in answers for label in labels]  # noqa: B009
        found.append(Tensor(name="scores", shape=[count, len(labels)], datatype="FP32", data=scores))
    return found


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
