"""Protocols of predictions: this service's own, and that of Hugging Face's inference API.

A `Protocol` says which type a request body has, how texts are read from it, and how answers are written. Everything in
between is the same for all protocols, so that clients of other services only need another address.
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

EXAMPLE_TEXT = "A film that I will watch again."  # in the OpenAPI document


@dataclass(frozen=True)
class Protocol:
    """One route for predictions, and the form of its requests and responses.

    Attributes:
        name: of the operation in the OpenAPI document.
        path: of the route.
        request: the type of the request body.
        response: the type of the response, for the OpenAPI document.
        read: returns the inputs in a request body.
        write: returns the content of the response, from the request body and one answer for each input.
        scope: the scope that a key needs.
        counted: whether the answers are counted in the metrics as predictions, and recorded.
        other_paths: more paths of the same route.
        binary: whether binary data may follow the JSON of the request body.
        from_files: makes a request body from uploaded files; None if the route accepts no files.
    """

    name: str
    path: str
    request: type[BaseModel]
    response: Any
    read: Callable[[Any], Sequence[Input]]
    write: Callable[[Any, Sequence[BaseModel]], Any]
    scope: Scope = "predict"
    counted: bool = True
    other_paths: tuple[str, ...] = ()
    binary: bool = False
    from_files: FromFiles | None = None


class Model(Frozen):
    """The model that answered; `version` is the beginning of the package's content key."""

    name: str
    version: str


class Pairs(Frozen):
    """Base of a request with pairs of texts; both lists must have the same length."""

    @model_validator(mode="after")
    def _same_number(self) -> Self:
        """Checks that both lists have the same length."""
        texts, pairs = (getattr(self, name) for name in ("texts", "text_pairs"))
        if len(texts) != len(pairs):
            raise ValueError(f"{len(texts)} texts and {len(pairs)} text_pairs, expected as many of each")
        return self


class Pair(Frozen):
    """Two texts that belong together."""

    text: str
    text_pair: str


def text_inputs(texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Input]:
    """Returns inputs of one text each, or of two; `pairs` are the second texts."""
    second_texts: Sequence[str | None] = pairs or [None] * len(texts)
    rows = zip(texts, second_texts, strict=True)
    return [TextInput.model_construct(text=text, text_pair=second) for text, second in rows]


def input_names(manifest: Manifest, task: Task) -> list[str]:
    """Lists the fields of an input that hold a text or a file; optional ones only if the model reads them."""
    fields, files = task.Input.model_fields.items(), task.Input.FILES
    names = [name for name, field in fields if field.annotation in (str, str | None) or name in files]
    optional = ("text", "text_pair") if files else ("text_pair",)
    return [name for name in names if manifest.pair or name not in optional]


def predict_protocol(manifest: Manifest, task: Task) -> Protocol:
    """Returns this service's own protocol, typed for the model and its task."""
    request, response = _request_model(manifest, task), _response_model(task)
    model = Model(name=manifest.name, version=manifest.version)

    def read(body: Any) -> Sequence[Input]:
        """Returns the inputs, which are fields of the body already or made from its texts."""
        if task.Input is not TextInput:
            return cast(Sequence[Input], body.inputs)
        return text_inputs(body.texts, getattr(body, "text_pairs", None))

    def write(_: BaseModel, answers: Sequence[BaseModel]) -> BaseModel:
        """Wraps the answers, and names the model."""
        return response.model_construct(predictions=list(answers), model=model)

    def from_files(inputs: Sequence[Mapping[str, Any]]) -> Any:
        return {"inputs": inputs}

    files_reader = from_files if task.Input.FILES else None
    return Protocol("predict", "/v1/predict", request, response, read, write, from_files=files_reader)


def _request_model(manifest: Manifest, task: Task) -> type[BaseModel]:
    """Returns the type of a request: `texts`, with `text_pairs` if the model reads pairs; `inputs` for other tasks."""
    bounds: dict[str, Any] = {"min_length": 1, "max_length": manifest.serve.max_texts}
    item: Any = task.Input
    if item is not TextInput:
        inputs = (list[item], Field(description="what to predict for", **bounds))
        return create_model("PredictRequest", __base__=Frozen, __doc__="Inputs to predict for.", inputs=inputs)
    fields: dict[str, Any] = {
        "texts": (list[str], Field(description="the texts to predict for", examples=[[EXAMPLE_TEXT]], **bounds)),
    }
    if manifest.pair:
        description = "the second text of each pair, as many as texts"
        fields["text_pairs"] = (list[str], Field(description=description, examples=[[EXAMPLE_TEXT]], **bounds))
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


def pipeline_protocol(manifest: Manifest, task: Task) -> Protocol:
    """Returns the protocol of Hugging Face's inference API: it answers as transformers' pipelines do."""
    special_input = task.Input is not TextInput  # the task has a type of input of its own
    single: Any = task.Input if special_input else Pair if manifest.pair else str
    function: Any = Literal[getattr(task, "PIPELINE_ACTIVATION", "softmax")]
    example: Any = dict.fromkeys(input_names(manifest, task), EXAMPLE_TEXT)
    if not special_input and not manifest.pair:
        example = EXAMPLE_TEXT

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
        """Returns the inputs, of which a body has one or a list."""
        inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        if special_input:
            return inputs
        if manifest.pair:
            return text_inputs([pair.text for pair in inputs], [pair.text_pair for pair in inputs])
        return text_inputs(inputs)

    def write(body: PipelineRequest, answers: Sequence[BaseModel]) -> Any:
        """Writes answers as the task's pipeline does; without a list around it, if the body had one input."""
        top_k = None if body.parameters is None else body.parameters.top_k
        outputs = [task.pipeline(answer, top_k) for answer in answers]
        return outputs if isinstance(body.inputs, list) or getattr(task, "PIPELINE_ALWAYS_LISTS", False) else outputs[0]

    def from_files(inputs: Sequence[Mapping[str, Any]]) -> Any:
        return {"inputs": inputs[0] if len(inputs) == 1 else inputs}

    response: Any = dict[str, Any] | list[Any] if special_input else list[Any]  # some answer one input by an object
    path, files_reader = f"/models/{manifest.name}", from_files if task.Input.FILES else None
    return Protocol("pipeline", path, PipelineRequest, response, read, write, from_files=files_reader)
