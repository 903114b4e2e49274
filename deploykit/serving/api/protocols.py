"""Routes for predictions: this service's own, and the one of Hugging Face's inference API.

A `Protocol` is the type of a body, how texts are read from it, and how answers are written. Everything in between is
the same for all of them, so that clients of other services need nothing but another address.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from deploykit.artifact import Manifest
from deploykit.methods import Frozen
from deploykit.serving.call import Scope
from deploykit.serving.http.routes import FromFiles
from deploykit.tasks import Input, Task, TextInput

EXAMPLE = "A film that I will watch again."


@dataclass(frozen=True)
class Protocol:
    """One route for predictions.

    Args:
        name: of the operation in the OpenAPI document.
        path: of the route.
        request: the type of the body.
        response: the type of the answer, for the OpenAPI document.
        read: returns the inputs in a body.
        write: returns the content of the response, from the body and its answers.
        scope: that a key needs.
        counted: whether the metrics count the answers as predictions.
        also: other paths of the same route.
        binary: whether binary data may follow the JSON of the body.
        from_files: see `Route`.
    """

    name: str
    path: str
    request: type[BaseModel]
    response: Any
    read: Callable[[Any], Sequence[Input]]
    write: Callable[[Any, Sequence[BaseModel]], Any]
    scope: Scope = "predict"
    counted: bool = True
    also: tuple[str, ...] = ()
    binary: bool = False
    from_files: FromFiles | None = None


class Model(Frozen):
    """The model that answered; `version` is the beginning of the package's content key."""

    name: str
    version: str


class Pairs(Frozen):
    """Base of a request with pairs."""

    @model_validator(mode="after")
    def _same_number(self) -> Self:
        texts, pairs = (getattr(self, name) for name in ("texts", "text_pairs"))
        if len(texts) != len(pairs):
            raise ValueError(f"{len(texts)} texts and {len(pairs)} text_pairs, expected as many of each")
        return self


class Pair(Frozen):
    """Two texts that belong together."""

    text: str
    text_pair: str


def text_inputs(texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Input]:
    """Returns inputs of one text each, or of two if there are pairs."""
    second: Sequence[str | None] = pairs or [None] * len(texts)
    return [TextInput.model_construct(text=text, text_pair=pair) for text, pair in zip(texts, second, strict=True)]


def input_names(manifest: Manifest, task: Task) -> list[str]:
    """Lists the fields of an input that hold a text or a file; of optional ones only those that the model reads."""
    fields, files = task.Input.model_fields.items(), task.Input.FILES
    names = [name for name, field in fields if field.annotation in (str, str | None) or name in files]
    optional = ("text", "text_pair") if files else ("text_pair",)
    return [name for name in names if manifest.pair or name not in optional]


def predict(manifest: Manifest, task: Task) -> Protocol:
    """Returns this service's own route, typed for the model and its task."""
    request, response = _request_model(manifest, task), _response_model(task)
    model = Model(name=manifest.name, version=manifest.version)

    def read(body: Any) -> Sequence[Input]:
        if task.Input is not TextInput:
            return cast(Sequence[Input], body.inputs)
        return text_inputs(body.texts, getattr(body, "text_pairs", None))

    def write(_: BaseModel, answers: Sequence[BaseModel]) -> BaseModel:
        return response.model_construct(predictions=list(answers), model=model)

    def from_files(inputs: Sequence[Mapping[str, Any]]) -> Any:
        return {"inputs": inputs}

    accepted = from_files if task.Input.FILES else None
    return Protocol("predict", "/v1/predict", request, response, read, write, from_files=accepted)


def _request_model(manifest: Manifest, task: Task) -> type[BaseModel]:
    """Returns the type of a request: `texts`, and `text_pairs` if the model reads pairs; `inputs` of other tasks."""
    bounds: dict[str, Any] = {"min_length": 1, "max_length": manifest.serve.max_texts}
    item: Any = task.Input
    if item is not TextInput:
        inputs = (list[item], Field(description="what to predict for", **bounds))
        return create_model("PredictRequest", __base__=Frozen, __doc__="Inputs to predict for.", inputs=inputs)
    fields: dict[str, Any] = {
        "texts": (list[str], Field(description="the texts to predict for", examples=[[EXAMPLE]], **bounds)),
    }
    if manifest.pair:
        description = "the second text of each pair, as many as texts"
        fields["text_pairs"] = (list[str], Field(description=description, examples=[[EXAMPLE]], **bounds))
    base = Pairs if manifest.pair else Frozen
    return create_model("PredictRequest", __base__=base, __doc__="Texts to predict for.", **fields)


def _response_model(task: Task) -> type[BaseModel]:
    """Returns the type of a response: one answer a text, in the order of the request."""
    answer: Any = task.Answer

    class PredictResponse(Frozen):
        """Predictions."""

        predictions: list[answer] = Field(description="one answer a text, in the order of the request")
        model: Model = Field(description="the model that answered")

    return PredictResponse


def pipeline(manifest: Manifest, task: Task) -> Protocol:
    """Returns the route of Hugging Face's inference API: `inputs` in, what transformers' pipelines return out."""
    own = task.Input is not TextInput
    single: Any = task.Input if own else Pair if manifest.pair else str
    function: Any = Literal[getattr(task, "PIPELINE_ACTIVATION", "softmax")]
    example: Any = dict.fromkeys(input_names(manifest, task), EXAMPLE)
    if not own and not manifest.pair:
        example = EXAMPLE

    class Parameters(BaseModel):
        """Options of the answers; those of other tasks are ignored."""

        top_k: int | None = Field(default=None, ge=1, description="the most labels of each answer")
        function_to_apply: function | None = Field(default=None, description="the function that gives the scores")
        aggregation_strategy: Literal["simple", "first", "average", "max"] | None = Field(
            default=None, description="accepted for entities; each word has the label of its first token"
        )

    class PipelineRequest(BaseModel):
        """One input, or a list of them."""

        model_config = ConfigDict(json_schema_extra={"example": {"inputs": example}})

        inputs: single | Annotated[list[single], Field(min_length=1, max_length=manifest.serve.max_texts)]
        parameters: Parameters | None = None
        options: dict[str, Any] = {}

    def read(body: PipelineRequest) -> list[Input]:
        inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        if own:
            return inputs
        if manifest.pair:
            return text_inputs([pair.text for pair in inputs], [pair.text_pair for pair in inputs])
        return text_inputs(inputs)

    def write(body: PipelineRequest, answers: Sequence[BaseModel]) -> Any:
        top_k = None if body.parameters is None else body.parameters.top_k
        outputs = [task.pipeline(answer, top_k) for answer in answers]
        return outputs if isinstance(body.inputs, list) or getattr(task, "PIPELINE_ALWAYS_LISTS", False) else outputs[0]

    def from_files(inputs: Sequence[Mapping[str, Any]]) -> Any:
        return {"inputs": inputs[0] if len(inputs) == 1 else inputs}

    response: Any = dict[str, Any] | list[Any] if own else list[Any]  # a single input of its own has an object
    path, accepted = f"/models/{manifest.name}", from_files if task.Input.FILES else None
    return Protocol("pipeline", path, PipelineRequest, response, read, write, from_files=accepted)
