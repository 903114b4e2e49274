"""The ways to ask: our own, the Open Inference Protocol (version 2), and the shape of Hugging Face's inference API.

Each is the type of a body, how texts are read from it, and how answers are written; what happens in between is the
same. Clients that exist for one of the other two work with nothing but another address.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import to_json

from deploykit import __version__
from deploykit.artifact import Manifest
from deploykit.serving.access.keys import Scope
from deploykit.serving.api import schemas, tensors
from deploykit.serving.api.schemas import EXAMPLE, Wire
from deploykit.serving.api.tensors import Output, Tensor
from deploykit.serving.http.bodies import JSON_LENGTH
from deploykit.serving.http.routes import Content
from deploykit.tasks import Task

TEXT, PAIR = "text", "text_pair"  # the tensors of the Open Inference Protocol
MAX_OUTPUTS = 16  # more than that get no mistake each
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
        also: other paths at which it is asked.
        binary: whether binary data may follow the JSON of its body.
    """

    name: str
    path: str
    request: type[BaseModel]
    response: Any
    read: Callable[[Any], Texts]
    write: Callable[[Any, Sequence[BaseModel]], Any]
    scope: Scope = "predict"
    counted: bool = True
    also: tuple[str, ...] = ()
    binary: bool = False


class InferResponse(Wire):
    """What the Open Inference Protocol answers."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


def predict(manifest: Manifest, task: Task) -> Protocol:
    """Returns our own way: typed for this model and task."""
    request, response = schemas.request_model(manifest), schemas.response_model(task)
    model = schemas.Model(name=manifest.name, version=manifest.version)

    def write(_: BaseModel, answers: Sequence[BaseModel]) -> BaseModel:
        return response.model_construct(predictions=list(answers), model=model)

    return Protocol("predict", "/v1/predict", request, response, _texts, write)


def infer(manifest: Manifest, task: Task) -> Protocol:
    """Returns the Open Inference Protocol: tensors of texts in; answers as JSON, and labels and scores, out."""
    names = [TEXT, PAIR] if manifest.pair else [TEXT]
    outputs = [output["name"] for output in _outputs(manifest, task)]

    class InferRequest(BaseModel):
        """Texts as tensors of the datatype BYTES, one element a text."""

        model_config = ConfigDict(
            frozen=True,
            extra="ignore",
            json_schema_extra={
                "example": {
                    "inputs": [{"name": name, "shape": [1], "datatype": "BYTES", "data": [EXAMPLE]} for name in names]
                }
            },
        )

        id: str | None = Field(default=None, max_length=128)
        inputs: list[Tensor] = Field(max_length=2)
        outputs: list[Output] | None = Field(default=None, max_length=MAX_OUTPUTS)
        parameters: dict[str, Any] | None = None

        @field_validator("inputs")
        @classmethod
        def _texts(cls, inputs: list[Tensor], info: ValidationInfo) -> list[Tensor]:
            if sorted(tensor.name for tensor in inputs) != sorted(names):
                raise ValueError(f"inputs must be the tensors {' and '.join(names)}")
            return tensors.texts_of(inputs, info.context or b"", manifest.serve.max_texts)

        @field_validator("parameters")
        @classmethod
        def _supported(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
            return tensors.supported(parameters)

        @model_validator(mode="after")
        def _fits(self) -> "InferRequest":
            counts = [len(tensor.data or ()) for tensor in self.inputs]
            for tensor, count in zip(self.inputs, counts, strict=True):
                if not all(isinstance(text, str) for text in tensor.data or ()):
                    raise ValueError(f"the tensor {tensor.name} must hold texts, of the datatype BYTES")
                if count > manifest.serve.max_texts:
                    raise ValueError(f"from 1 to {manifest.serve.max_texts} texts are answered at once")
                if count != prod(tensor.shape):
                    raise ValueError(f"the tensor {tensor.name} holds {count} texts, its shape says otherwise")
            if min(counts) != max(counts):
                raise ValueError(f"the tensors {' and '.join(names)} hold different numbers of texts")
            if not min(counts):
                raise ValueError(f"from 1 to {manifest.serve.max_texts} texts are answered at once")
            for output in self.outputs or ():
                if output.name not in outputs:
                    raise ValueError(f"outputs may be {', '.join(outputs)}")
            return self

    def read(asked: InferRequest) -> Texts:
        data = {tensor.name: tensor.data or [] for tensor in asked.inputs}
        return data[TEXT], data.get(PAIR)

    def write(asked: InferRequest, answers: Sequence[BaseModel]) -> Any:
        wanted = outputs if asked.outputs is None else {output.name for output in asked.outputs}
        made, binary = list[Tensor](), b""
        for tensor in _tensors(answers, manifest.labels):
            if tensor.name in wanted:
                follows = tensors.wants_binary(asked.outputs, asked.parameters, tensor.name)
                tensor, data = tensors.as_binary(tensor) if follows else (tensor, b"")
                made.append(tensor)
                binary += data
        answer = InferResponse(model_name=manifest.name, model_version=manifest.version, id=asked.id, outputs=made)
        content = answer.model_dump(exclude_none=True)
        return _with_binary(content, binary) if binary else content

    paths = [f"{path}/infer" for path in model_paths(manifest)]
    return Protocol("infer", paths[0], InferRequest, InferResponse, read, write, also=(paths[1],), binary=True)


def _with_binary(content: dict[str, Any], binary: bytes) -> Content:
    """Writes an answer as JSON with the data of tensors after it."""
    written = to_json(content)
    headers = {"content-type": "application/octet-stream", JSON_LENGTH: str(len(written))}
    return Content(written + binary, headers)


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


def model_paths(manifest: Manifest) -> tuple[str, str]:
    """Returns where the Open Inference Protocol has the model: without its version, and with it."""
    path = f"/v2/models/{manifest.name}"
    return path, f"{path}/versions/{manifest.version}"


def server_metadata() -> bytes:
    """Describes the server, as the Open Inference Protocol wants it."""
    return json.dumps({"name": "deploykit", "version": __version__, "extensions": ["binary_tensor_data"]}).encode()


def model_metadata(manifest: Manifest, task: Task) -> bytes:
    """Describes the model, as the Open Inference Protocol wants it."""
    names = [TEXT, PAIR] if manifest.pair else [TEXT]
    content = {
        "name": manifest.name,
        "versions": [manifest.version],
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
