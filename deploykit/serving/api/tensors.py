"""Tensors of the Open Inference Protocol (version 2): in JSON or, by its binary extension, as bytes after the JSON.

Unknown keys are ignored, as the protocol demands; a parameter that asks for what this service cannot do is refused by
its name.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from deploykit import images

MAX_DIMENSIONS = 8  # of a shape, before its sizes are multiplied
BINARY_SIZE, BINARY_OUTPUT, BINARY_OUTPUTS = "binary_data_size", "binary_data", "binary_data_output"
LENGTH = struct.Struct("<I")  # before each text
UNSUPPORTED = {
    **dict.fromkeys(("shared_memory_region", "shared_memory_byte_size"), "send the data in the request"),
    **dict.fromkeys(("sequence_id", "sequence_start", "sequence_end"), "nothing is kept from one request to the next"),
    "classification": "ask for the output scores",
}


def _supported(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    for name in parameters or ():
        if name in UNSUPPORTED:
            raise ValueError(f"the parameter {name} is not supported: {UNSUPPORTED[name]}")
    return parameters


Parameters = Annotated[dict[str, Any] | None, AfterValidator(_supported)]


class Named(BaseModel):
    """Base of tensors and outputs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    parameters: Parameters = None


class Output(Named):
    """An output that the client asks for."""


class Tensor(Named):
    """A tensor; its data may be nested as its shape is, and becomes flat, or follows the JSON."""

    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_DIMENSIONS)]
    datatype: Literal["BYTES", "FP32"]
    data: list[Any] | None = Field(default=None, description="left out if `parameters.binary_data_size` is set")

    @field_validator("data")
    @classmethod
    def _flat(cls, data: list[Any] | None, validated: ValidationInfo) -> list[Any] | None:
        for size in validated.data.get("shape", [])[1:]:
            if data is None or not all(isinstance(part, list) and len(part) == size for part in data):
                break
            data = [value for part in data for value in part]
        return data


def read_texts(tensors: Sequence[Tensor], binary: bytes, max_texts: int, files: Sequence[str] = ()) -> list[Tensor]:
    """Returns tensors with their texts as data, taken from the JSON or from the bytes after it.

    Args:
        tensors: of a request.
        binary: the bytes after its JSON.
        max_texts: that a tensor may hold; more are not read.
        files: names of the tensors that hold images: their bytes after the JSON, or in base64 within it.

    Raises:
        ValueError: a tensor holds no texts, too many of them, or not as many as its shape or its size says.
    """
    rest, complete = memoryview(binary), list[Tensor]()
    for tensor in tensors:
        data, size = tensor.data, (tensor.parameters or {}).get(BINARY_SIZE)
        if tensor.datatype != "BYTES" or not all(isinstance(text, str) for text in data or ()):
            raise ValueError(f"the tensor {tensor.name} must hold texts, of the datatype BYTES")
        if (data is None) == (size is None):
            raise ValueError(f"the tensor {tensor.name} must have either data or the parameter {BINARY_SIZE}")
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(rest):
                bound = f"up to {len(rest)}, got {size!r:.20}"
                raise ValueError(f"the tensor {tensor.name} must have a {BINARY_SIZE} {bound}")
            parts, rest = _binary_parts(tensor.name, rest[:size], max_texts), rest[size:]
            data = [bytes(part) if tensor.name in files else _decoded(tensor.name, part) for part in parts]
        if tensor.name in files:
            data = [images.parse_image(image) for image in data or ()]
        count = len(data or ())
        if not 1 <= count <= max_texts:
            raise ValueError(f"from 1 to {max_texts} texts are answered at once")
        if count != prod(tensor.shape):
            raise ValueError(f"the tensor {tensor.name} holds {count} texts, its shape says otherwise")
        complete.append(tensor.model_copy(update={"data": data}))
    if rest:
        raise ValueError(f"{len(rest)} bytes after the JSON belong to no tensor")
    return complete


def _binary_parts(name: str, data: memoryview, max_texts: int) -> Iterator[memoryview]:
    for _ in range(max_texts + 1):  # one too many is enough to refuse them
        if not data:
            return
        size = LENGTH.unpack_from(data)[0] if len(data) >= LENGTH.size else len(data)
        text, data = data[LENGTH.size : LENGTH.size + size], data[LENGTH.size + size :]
        if len(text) != size:
            raise ValueError(f"the tensor {name} ends within a text; each has its length before it, in 4 bytes")
        yield text


def _decoded(name: str, text: memoryview) -> str:
    try:
        return str(text, "utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"the tensor {name} must hold texts in UTF-8") from None


def wants_binary(outputs: Sequence[Output] | None, parameters: Mapping[str, Any] | None, name: str) -> bool:
    """Says whether the client wants the data of an output after the JSON."""
    default = (parameters or {}).get(BINARY_OUTPUTS) is True
    own = [output.parameters or {} for output in outputs or () if output.name == name]
    return any(options.get(BINARY_OUTPUT, default) is True for options in own or [{}])


def as_binary(tensor: Tensor) -> tuple[Tensor, bytes]:
    """Returns a tensor without its data, and the data as bytes."""
    if tensor.datatype == "FP32":
        data = np.array(tensor.data, "<f4").tobytes()
    else:
        data = b"".join(LENGTH.pack(len(text)) + text for text in (text.encode() for text in tensor.data or ()))
    return tensor.model_copy(update={"data": None, "parameters": {BINARY_SIZE: len(data)}}), data
