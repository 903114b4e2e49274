"""Tensors of the Open Inference Protocol (version 2): in JSON or, by its binary extension, as bytes after the JSON.

Unknown keys are ignored, as the protocol demands. Parameters of the protocol that this service does not support are
refused.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from deploykit import images

MAX_DIMENSIONS = 8  # of a shape; checked before its sizes are multiplied
# Parameters of the binary extension: how many bytes after the JSON belong to a tensor; whether one output shall be sent
# as bytes; whether all outputs shall.
BINARY_SIZE, BINARY_OUTPUT, ALL_BINARY_OUTPUTS = "binary_data_size", "binary_data", "binary_data_output"
TEXT_LENGTH = struct.Struct("<I")  # the number of bytes of a text, which stands before it
UNSUPPORTED_PARAMETERS = {  # from name to what to do instead
    **dict.fromkeys(("shared_memory_region", "shared_memory_byte_size"), "send the data in the request"),
    **dict.fromkeys(("sequence_id", "sequence_start", "sequence_end"), "nothing is kept from one request to the next"),
    "classification": "ask for the output scores",
}


def _require_supported(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the parameters; raises a ValueError if one of them is not supported."""
    for name in parameters or ():
        if name in UNSUPPORTED_PARAMETERS:
            raise ValueError(f"the parameter {name} is not supported: {UNSUPPORTED_PARAMETERS[name]}")
    return parameters


Parameters = Annotated[dict[str, Any] | None, AfterValidator(_require_supported)]


class TensorBase(BaseModel):
    """What tensors and outputs that a client asks for have in common."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    parameters: Parameters = None


class Output(TensorBase):
    """An output that the client asks for."""


class Tensor(TensorBase):
    """A tensor. Its data may be nested as its shape says, and becomes flat; or it follows the JSON as bytes."""

    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_DIMENSIONS)]
    datatype: Literal["BYTES", "FP32"]
    data: list[Any] | None = Field(default=None, description="left out if `parameters.binary_data_size` is set")

    @field_validator("data")
    @classmethod
    def _flatten(cls, data: list[Any] | None, validated: ValidationInfo) -> list[Any] | None:
        """Flattens data that is nested as the shape says; other data stays as it is."""
        for size in validated.data.get("shape", [])[1:]:
            if data is None or not all(isinstance(row, list) and len(row) == size for row in data):
                break
            data = [value for row in data for value in row]
        return data


def read_texts(tensors: Sequence[Tensor], binary: bytes, max_texts: int, files: Sequence[str] = ()) -> list[Tensor]:
    """Returns tensors with their texts as data, taken from the JSON or from the bytes after it.

    Args:
        tensors: of a request.
        binary: the bytes after its JSON.
        max_texts: how many texts a tensor may hold; more are refused without being read.
        files: names of the tensors that hold images: as bytes after the JSON, or in base64 within it.

    Raises:
        ValueError: a tensor holds no texts, too many of them, or not as many as its shape or its size says.
    """
    unread, complete_tensors = memoryview(binary), list[Tensor]()
    for tensor in tensors:
        data, size = tensor.data, (tensor.parameters or {}).get(BINARY_SIZE)
        if tensor.datatype != "BYTES" or not all(isinstance(text, str) for text in data or ()):
            raise ValueError(f"the tensor {tensor.name} must hold texts, of the datatype BYTES")
        if (data is None) == (size is None):
            raise ValueError(f"the tensor {tensor.name} must have either data or the parameter {BINARY_SIZE}")
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(unread):
                limit = f"up to {len(unread)}, got {size!r:.20}"
                raise ValueError(f"the tensor {tensor.name} must have a {BINARY_SIZE} {limit}")
            values, unread = _split_binary(tensor.name, unread[:size], max_texts), unread[size:]
            data = [bytes(value) if tensor.name in files else _decode(tensor.name, value) for value in values]
        if tensor.name in files:
            data = [images.parse_image(image) for image in data or ()]
        count = len(data or ())
        if not 1 <= count <= max_texts:
            raise ValueError(f"from 1 to {max_texts} texts are answered at once")
        if count != prod(tensor.shape):
            raise ValueError(f"the tensor {tensor.name} holds {count} texts, its shape says otherwise")
        complete_tensors.append(tensor.model_copy(update={"data": data}))
    if unread:
        raise ValueError(f"{len(unread)} bytes after the JSON belong to no tensor")
    return complete_tensors


def _split_binary(name: str, data: memoryview, max_texts: int) -> Iterator[memoryview]:
    """Yields the bytes of each text or image of a tensor, at most one more than `max_texts`."""
    for _ in range(max_texts + 1):  # one too many is enough to refuse them
        if not data:
            return
        size = TEXT_LENGTH.unpack_from(data)[0] if len(data) >= TEXT_LENGTH.size else len(data)
        text, data = data[TEXT_LENGTH.size : TEXT_LENGTH.size + size], data[TEXT_LENGTH.size + size :]
        if len(text) != size:
            raise ValueError(f"the tensor {name} ends within a text; each has its length before it, in 4 bytes")
        yield text


def _decode(name: str, text: memoryview) -> str:
    """Decodes a text of a tensor."""
    try:
        return str(text, "utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"the tensor {name} must hold texts in UTF-8") from None


def wants_binary(outputs: Sequence[Output] | None, parameters: Mapping[str, Any] | None, name: str) -> bool:
    """Says whether the client wants the data of an output as bytes after the JSON.

    Args:
        outputs: that the request names; None if it names none.
        parameters: of the request.
        name: of the output.
    """
    default = (parameters or {}).get(ALL_BINARY_OUTPUTS) is True
    output_parameters = [output.parameters or {} for output in outputs or () if output.name == name]
    return any(options.get(BINARY_OUTPUT, default) is True for options in output_parameters or [{}])


def as_binary(tensor: Tensor) -> tuple[Tensor, bytes]:
    """Returns a tensor without its data, and the data as bytes."""
    if tensor.datatype == "FP32":
        data = np.array(tensor.data, "<f4").tobytes()
    else:
        data = b"".join(TEXT_LENGTH.pack(len(text)) + text for text in (text.encode() for text in tensor.data or ()))
    return tensor.model_copy(update={"data": None, "parameters": {BINARY_SIZE: len(data)}}), data
