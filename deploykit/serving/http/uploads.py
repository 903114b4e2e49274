"""Bodies that are files: one image as it is, or a form (multipart/form-data) with several images and their texts."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from deploykit.images import MEDIA_TYPES
from deploykit.serving.http.bodies import BINARY_BODY_TYPES, invalid, media_type
from deploykit.serving.http.routes import FromFiles
from deploykit.serving.problems import Problem

FORM_TYPE = "multipart/form-data"
SINGLE_IMAGE_TYPES = (*MEDIA_TYPES, *BINARY_BODY_TYPES)  # Hugging Face's client sends an image without a content type
FORM_FIELDS = ("image", "text")
# schemas of a file and of a form, in OpenAPI
FILE_SCHEMA = {"type": "string", "contentMediaType": "application/octet-stream"}
FORM_SCHEMA = {
    "type": "object",
    "properties": {
        "image": {"type": "array", "items": FILE_SCHEMA},
        "text": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["image"],
}
# what OpenAPI says of such bodies, by content type
OPENAPI_CONTENT = {FORM_TYPE: {"schema": FORM_SCHEMA}, **{kind: {"schema": FILE_SCHEMA} for kind in MEDIA_TYPES}}
EXPECTED_DETAIL = (  # in the refusal of a body of another type
    f"send JSON, an image ({', '.join(MEDIA_TYPES)}),"
    f" or a form ({FORM_TYPE}) with the fields {' and '.join(FORM_FIELDS)}"
)


def are_files(headers: Mapping[str, str]) -> bool:
    """Says whether a body is an image or a form, by its content type."""
    return media_type(headers) in (FORM_TYPE, *SINGLE_IMAGE_TYPES)


def parse(
    model: type[BaseModel], from_files: FromFiles, body: bytes, headers: Mapping[str, str], max_inputs: int
) -> BaseModel:
    """Parses and validates an image or a form, as if the same request had been sent in JSON.

    Args:
        model: the type of the JSON body.
        from_files: makes the content of a JSON body from inputs with files.
        body: of the request.
        headers: of the request.
        max_inputs: how many inputs the service accepts at once.

    Raises:
        Problem: 400 the form cannot be read, 422 it does not match the type.
    """
    is_form = media_type(headers) == FORM_TYPE
    inputs = _read_form(body, headers, max_inputs) if is_form else [{"image": body}]
    try:
        return model.model_validate(from_files(inputs))
    except ValidationError as error:
        raise invalid(error) from None


def _read_form(body: bytes, headers: Mapping[str, str], max_inputs: int) -> list[dict[str, Any]]:
    """Returns the inputs in a form. Each is an image; if there are texts, the first belongs to the first image, etc."""
    values: dict[str, list[Any]] = {name: [] for name in FORM_FIELDS}

    def add(name: bytes | None, value: Any) -> None:
        """Adds the value of a field; raises an error if the field is unknown or comes too often."""
        field = (name or b"").decode(errors="replace")
        if field not in values or len(values[field]) == max_inputs:
            raise FormParserError(f"expected up to {max_inputs} fields each of {' and '.join(FORM_FIELDS)}")
        values[field].append(value)

    def add_file(part: File) -> None:
        part.file_object.seek(0)
        add(part.field_name, part.file_object.read())

    def add_text(part: Field) -> None:
        add(part.field_name, (part.value or b"").decode())

    _, options = parse_options_header(headers["content-type"])
    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}  # so that no file of the form is written to a disk
    try:
        form = FormParser(FORM_TYPE, add_text, add_file, boundary=options.get(b"boundary"), config=in_memory)
        form.write(body)
        form.finalize()
    except (FormParserError, UnicodeDecodeError) as error:
        raise Problem(400, "malformed", f"the form cannot be read: {error}") from None
    images, texts = values["image"], values["text"]
    if texts and len(texts) != len(images):
        detail = f"the form has {len(images)} images and {len(texts)} texts, expected as many of each, or no text"
        raise Problem(422, "invalid", detail)
    if not texts:
        return [{"image": image} for image in images]
    return [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]
