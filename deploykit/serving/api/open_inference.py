"""The Open Inference Protocol (version 2), which the clients of Triton and KServe speak."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator
from pydantic_core import to_json

from deploykit import __version__
from deploykit.artifact import Manifest
from deploykit.methods import Frozen
from deploykit.serving.api import tensors
from deploykit.serving.api.protocols import EXAMPLE_TEXT, Protocol, input_names
from deploykit.serving.api.tensors import Output, Parameters, Tensor
from deploykit.serving.http.bodies import JSON_LENGTH_HEADER
from deploykit.serving.http.routes import Content
from deploykit.tasks import Input, Spec, Task, spec_of

MAX_OUTPUTS = 16  # that a request may name; checked before each of them is validated


class InferResponse(Frozen):
    """The answer of the Open Inference Protocol."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


def infer_protocol(manifest: Manifest, task: Task) -> Protocol:
    """Returns the protocol of predictions: requests are tensors of texts, responses tensors of answers.

    The tensor `answer` holds answers as JSON; other tensors, of labels and scores, depend on the task.
    """
    output_names = [output["name"] for output in _output_metadata(manifest, task)]
    request = _request_model(input_names(manifest, task), task.Input.FILES, output_names, manifest.serve.max_texts)
    spec = spec_of(manifest)

    def read(body: Any) -> list[Input]:
        """Returns one input for each position in the tensors."""
        data = {tensor.name: tensor.data for tensor in body.inputs}
        rows = (dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True))
        return [task.Input.model_construct(**row) for row in rows]

    def write(body: Any, answers: Sequence[BaseModel]) -> Any:
        """Writes the output tensors that the request names; all of them, if it names none."""
        names = output_names if body.outputs is None else {output.name for output in body.outputs}
        outputs, binary_data = list[Tensor](), b""
        for tensor in _output_tensors(answers, task, spec):
            if tensor.name in names:
                is_binary = tensors.wants_binary(body.outputs, body.parameters, tensor.name)
                tensor, data = tensors.as_binary(tensor) if is_binary else (tensor, b"")
                outputs.append(tensor)
                binary_data += data
        answer = InferResponse(model_name=manifest.name, model_version=manifest.version, id=body.id, outputs=outputs)
        content = answer.model_dump(exclude_none=True)
        return _with_binary_data(content, binary_data) if binary_data else content

    path, versioned_path = (f"{model}/infer" for model in model_paths(manifest))
    return Protocol("infer", path, request, InferResponse, read, write, other_paths=(versioned_path,), binary=True)


def _request_model(
    names: Sequence[str], files: Sequence[str], output_names: Sequence[str], max_texts: int
) -> type[BaseModel]:
    """Returns the type of a request.

    Args:
        names: of the input tensors.
        files: those of them that hold images.
        output_names: of the output tensors.
        max_texts: how many texts a tensor may hold.
    """
    example: list[JsonValue] = [
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [EXAMPLE_TEXT]} for name in names
    ]

    class InferRequest(BaseModel):
        """Texts as tensors of the datatype BYTES, one element a text."""

        model_config = ConfigDict(frozen=True, extra="ignore", json_schema_extra={"example": {"inputs": example}})

        id: str | None = Field(default=None, max_length=128)
        inputs: list[Tensor] = Field(max_length=len(names) + 1)  # the error of one too many lists the names
        outputs: list[Output] | None = Field(default=None, max_length=MAX_OUTPUTS)
        parameters: Parameters = None

        @field_validator("inputs")
        @classmethod
        def _hold_texts(cls, inputs: list[Tensor], info: ValidationInfo) -> list[Tensor]:
            """Reads the texts; checks that there is each tensor once, and that all hold equally many texts."""
            expected = " and ".join(names)
            if sorted(tensor.name for tensor in inputs) != sorted(names):
                raise ValueError(f"inputs must be the tensors {expected}")
            inputs = tensors.read_texts(inputs, info.context or b"", max_texts, files)
            if len({len(tensor.data or ()) for tensor in inputs}) > 1:
                raise ValueError(f"the tensors {expected} hold different numbers of texts")
            return inputs

        @field_validator("outputs")
        @classmethod
        def _exist(cls, outputs: list[Output] | None) -> list[Output] | None:
            """Checks that the outputs that the request names exist."""
            if not {output.name for output in outputs or ()} <= {*output_names}:
                raise ValueError(f"outputs may be {', '.join(output_names)}")
            return outputs

    return InferRequest


def _with_binary_data(content: dict[str, Any], binary_data: bytes) -> Content:
    """Serializes an answer as JSON, followed by the binary data of its tensors."""
    serialized = to_json(content)
    headers = {"content-type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(serialized))}
    return Content(serialized + binary_data, headers)


def model_paths(manifest: Manifest) -> tuple[str, str]:
    """Returns the paths of the model: without its version, and with it."""
    path = f"/v2/models/{manifest.name}"
    return path, f"{path}/versions/{manifest.version}"


def server_metadata() -> bytes:
    """Returns the protocol's description of the server, in JSON."""
    return json.dumps({"name": "deploykit", "version": __version__, "extensions": ["binary_tensor_data"]}).encode()


def model_metadata(manifest: Manifest, task: Task) -> bytes:
    """Returns the protocol's description of the model, in JSON."""
    content = {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": f"{manifest.execution.engine}_onnx",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in input_names(manifest, task)],
        "outputs": _output_metadata(manifest, task),
    }
    return json.dumps(content).encode()


def _output_metadata(manifest: Manifest, task: Task) -> list[dict[str, Any]]:
    """Describes the output tensors: name, datatype and shape, where -1 stands for the number of texts."""
    answer = {"name": "answer", "datatype": "BYTES", "shape": [-1]}
    if "tensors" not in task.CAPABILITIES:
        return [answer]
    empty_tensors = task.tensors([], spec_of(manifest))
    datatypes = {"O": "BYTES", "f": "FP32"}  # by numpy's kind: objects and floats
    others = (
        {"name": name, "datatype": datatypes[array.dtype.kind], "shape": [-1, *array.shape[1:]]}
        for name, array in empty_tensors.items()
    )
    return [answer, *others]


def _output_tensors(answers: Sequence[Any], task: Task, spec: Spec) -> list[Tensor]:
    """Returns all output tensors of answers, with flat data."""
    count = len(answers)
    texts = [answer.model_dump_json() for answer in answers]
    outputs = [Tensor(name="answer", shape=[count], datatype="BYTES", data=texts)]
    arrays = task.tensors(answers, spec) if "tensors" in task.CAPABILITIES else {}
    for name, array in arrays.items():
        datatype: Any = "BYTES" if array.dtype == object else "FP32"
        outputs.append(Tensor(name=name, shape=list(array.shape), datatype=datatype, data=array.reshape(-1).tolist()))
    return outputs
