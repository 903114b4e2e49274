"""Predicts one of two or more labels for an image, or for an image with a text, such as a question about it.

If the recipe names the column of the texts, inputs are images with texts, and the base model is a CLIP or SigLIP.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from deploykit import images
from deploykit.images import ImageTokenizer, decoding
from deploykit.methods import Frozen
from deploykit.tasks import Column, Example, Float32, Spec, softmax
from deploykit.tasks import Input as BaseInput
from deploykit.tasks._abstention import AbstentionOptions
from deploykit.tasks._classification import (  # noqa: F401  functions of this task
    decide,
    distance,
    dump,
    load,
    pipeline,
    probabilities,
    read_label,
    read_text,
)
from deploykit.tasks.text_classification import (  # noqa: F401  functions of this task
    FIGURES,
    METRICS,
    OUTPUTS,
    TARGETS,
    changes,
    decode,
    example_labels,
    gold,
    item_labels,
    items,
    label_names,
    label_order,
    observe,
    record,
    targets,
    tensors,
    tune,
)
from deploykit.tokenizer import Features

EXTRA = "images"  # the pip extra that brings Pillow; packages pin it
AUTO_CLASS = "AutoModelForImageClassification"  # reads images alone; with texts, the model is one of deploykit
ORT_CLASS = "ORTModelForImageClassification"
OPTIMUM_TASK = "image-classification"
COLUMNS = {
    "image": Column("image", "the image: a path relative to the file of the rows, a data URL, or bytes in parquet"),
    "text": Column(None, "a text that belongs to the image; naming it makes this a task on images with texts"),
    "label": Column("label", "the label, a word or a whole number"),
}
_PNG_START = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nG"  # of both examples
EXAMPLES = (  # one pixel each
    {"image": f"{_PNG_START}P4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC", "label": "red"},
    {"image": f"{_PNG_START}NgYPgPAAEDAQAIicLsAAAAAElFTkSuQmCC", "label": "blue"},
)
CAPABILITIES = frozenset({"pipeline", "tensors"})
SERVE = {"max_body_bytes": 12 * 2**20}  # the largest image in base64 has 10.7 MiB
# Encoding costs are in characters of text that take as long to tokenize, about 1 µs each.
BYTES_PER_CHARACTER = 16  # of a JPEG file, which takes about 60 ns per byte to decode
MIN_IMAGE_COST = 4096  # of the smallest image: about 4 ms, too long for the event loop


class Options(AbstentionOptions):
    """When an answer says that the model abstains."""


class Input(BaseInput):
    """An image, and a text if the model reads one."""

    FILES: ClassVar[tuple[str, ...]] = ("image",)

    image: Annotated[
        bytes | Path,
        PlainValidator(images.parse_image),
        PlainSerializer(images.encode_base64, return_type=str, when_used="json"),
        WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
    ] = Field(description="a PNG, JPEG or WebP file in base64, or as a data URL")
    text: str | None = Field(default=None, description="the text, of a model that reads images with texts")

    @model_validator(mode="before")
    @classmethod
    def _accept_image_alone(cls, content: Any) -> Any:
        return {"image": content} if isinstance(content, (str, bytes, Path)) else content

    @property
    def identity(self) -> tuple[str, ...]:
        """A key that duplicates share: a hash of the file, and the text."""
        return (self._digest, *super().identity)

    @cached_property
    def _digest(self) -> str:
        return sha256(decoding.read_bytes(self.image)).hexdigest()

    @property
    def title(self) -> str:
        """The name of the file, or the beginning of its hash, and the text, for messages and tables."""
        name = self.image.name if isinstance(self.image, Path) else f"image {self._digest[:12]}"
        return " ".join([name, *self.texts])

    @property
    def encoding_cost(self) -> int:
        """Estimated time to encode it, in characters of text that take as long; a file counts as a small image."""
        size = len(self.image) if isinstance(self.image, bytes) else 0
        return MIN_IMAGE_COST + super().encoding_cost + size // BYTES_PER_CHARACTER


class Answer(Frozen):
    """The prediction for one image."""

    label: str = Field(description="the most probable label")
    score: float = Field(description="its probability, 0 to 1")
    scores: dict[str, float] = Field(description="the probability of every label")
    tokens: int = Field(description="parts of the image that the model read, and tokens of the text")
    truncated: bool = Field(description="whether the end of the text was cut off")
    abstained: bool = Field(description="whether the score is too low to rely on the label")


def reader(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
) -> Callable[[Mapping[str, Any]], Example]:
    """Returns a function that reads the columns `image`, `text` (if named) and `label`, and decodes each image once."""
    return lambda row: _read(row, columns)


def _read(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> Example:
    image, text, label = images.parse_image(row[str(columns["image"])]), columns.get("text"), read_label(row, columns)
    decoding.decode(decoding.read_bytes(image))
    return Example(Input.model_construct(image=image, text=read_text(row, text) if text else None), label)


def encode(inputs: Sequence[Input], tokenizer: ImageTokenizer, spec: Spec) -> list[list[Features]]:
    """Tokenizes the texts, and cuts long ones. Images are decoded only when their batch is made.

    Raises:
        InputError: an input has no text although the model reads texts, or has one although it reads none.
    """
    features = tokenizer.make_features([item.image for item in inputs], [item.text for item in inputs])
    return [[single] for single in features]


def golden_input(item: Input, tokenizer: ImageTokenizer) -> Input:
    """Returns the input with its image in the size that the model reads; the original may have 8 MiB."""
    return item.model_copy(update={"image": tokenizer.preprocessing.resized_png(item.image)})


def answer(prediction: Float32, features: Sequence[Features], item: Input, spec: Spec) -> Answer:
    """Returns the most probable label with the probabilities of all labels."""
    (single,), shares = features, softmax(prediction[0])
    best = int(shares.argmax())
    return Answer(
        label=spec.labels[best],
        score=float(shares[best]),
        scores=dict(zip(spec.labels, shares.tolist(), strict=True)),
        tokens=len(single),
        truncated=single.encoding.truncated,
        abstained=bool(shares[best] < (spec.options.abstain_below or 0.0)),
    )
