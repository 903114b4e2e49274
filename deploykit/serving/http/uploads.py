"""Bodies that are files: one image as it is, or a form (multipart/form-data) with several and their texts."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from deploykit.images import MEDIA_TYPES
from deploykit.serving.http.bodies import BINARY_TYPES, invalid, media_type
from deploykit.serving.http.routes import FromFiles
from deploykit.serving.problems import Problem

FORM = "multipart/form-data"
ALONE = (*MEDIA_TYPES, *BINARY_TYPES)  # content types of one image; Hugging Face's client sends bytes without one
FIELDS = ("image", "text")
FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
FORM_SCHEMA = {
    "type": "object",
    "properties": {"image": {"type": "array", "items": FILE}, "text": {"type": "array", "items": {"type": "string"}}},
    "required": ["image"],
}
DESCRIPTION = {FORM: {"schema": FORM_SCHEMA}, **{kind: {"schema": FILE} for kind in MEDIA_TYPES}}  # in OpenAPI
EXPECTED = f"send JSON, an image ({', '.join(MEDIA_TYPES)}), or a form ({FORM}) with the fields {' and '.join(FIELDS)}"


def are_files(headers: Mapping[str, str]) -> bool:
    """Says whether a body is an image or a form, and not JSON."""
    return media_type(headers) in (FORM, *ALONE)


def parse(
    model: type[BaseModel], wrap: FromFiles, body: bytes, headers: Mapping[str, str], max_inputs: int
) -> BaseModel:
    """Reads an image or a form as the same request in JSON would be read.

    Args:
        model: the type of the body.
        wrap: makes the content of such a body from its inputs.
        body: of the request.
        headers: of the request.
        max_inputs: that the service accepts at once.

    Raises:
        Problem: 400 the form is damaged, 422 it does not match the type.
    """
    inputs = _inputs(body, headers, max_inputs) if media_type(headers) == FORM else [{"image": body}]
    try:
        return model.model_validate(wrap(inputs))
    except ValidationError as error:
        raise invalid(error) from None


def _inputs(body: bytes, headers: Mapping[str, str], max_inputs: int) -> list[dict[str, Any]]:
    """Returns the inputs in a form: each image, with the text at the same place if there are texts."""
    parts: dict[str, list[Any]] = {name: [] for name in FIELDS}

    def add(name: bytes | None, value: Any) -> None:
        field = (name or b"").decode(errors="replace")
        if field not in parts or len(parts[field]) == max_inputs:
            raise FormParserError(f"expected up to {max_inputs} fields each of {' and '.join(FIELDS)}")
        parts[field].append(value)

    def add_file(part: File) -> None:
        part.file_object.seek(0)
        add(part.field_name, part.file_object.read())

    def add_text(part: Field) -> None:
        add(part.field_name, (part.value or b"").decode())

    _, options = parse_options_header(headers["content-type"])
    unlimited = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}  # the body is bounded, and nothing is written to a disk
    try:
        form = FormParser(FORM, add_text, add_file, boundary=options.get(b"boundary"), config=unlimited)
        form.write(body)
        form.finalize()
    except (FormParserError, UnicodeDecodeError) as error:
        raise Problem(400, "malformed", f"the form cannot be read: {error}") from None
    images, texts = parts["image"], parts["text"]
    if texts and len(texts) != len(images):
        detail = f"the form has {len(images)} images and {len(texts)} texts, expected as many of each, or no text"
        raise Problem(422, "invalid", detail)
    fields = [{"text": text} for text in texts] or [{} for _ in images]
    return [{"image": image, **field} for image, field in zip(images, fields, strict=True)]
