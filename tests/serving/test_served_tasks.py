"""Each task that is not about one label or spans, served: its own route, the inference API, tensors, and the page."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rows import inputs_of

from deploykit import tasks
from deploykit.artifact import GRAPH
from deploykit.inference.predictor import Predictor
from deploykit.tasks import multi_task as MultiTask  # noqa: N812
from deploykit.tasks.question_answering import Input as Question
from deploykit.tasks.relation_extraction import Input as Related

TEXTS = ["a great film", "the plot is weak"]
CONTEXT = "anna lives in london ."
PREDICT = "/v1/predict"


def graph(file, outputs, labels):
    """A graph whose outputs are sums, over a text, of each token or of each pair, of the rows of a table of weights.

    `labels` is the number of each output's labels.
    """
    nodes, constants, infos = [], [], []
    for seed, (name, axes) in enumerate(outputs.items()):
        columns = labels[name] if axes[-1] == "labels" else 1
        weights = np.random.default_rng(seed + 5).normal(size=(200, columns)).astype(np.float32)
        constants += [numpy_helper.from_array(weights, f"{name}.weights")]
        nodes.append(helper.make_node("Gather", [f"{name}.weights", "input_ids"], [f"{name}.rows"]))
        if axes == ("tokens",):
            nodes.append(helper.make_node("Squeeze", [f"{name}.rows", "last"], [name]))
        elif axes == ("tokens", "labels"):
            nodes.append(helper.make_node("Identity", [f"{name}.rows"], [name]))
        elif axes == ("tokens", "tokens", "labels"):
            sides = [f"{name}.first", f"{name}.second"]
            nodes.append(helper.make_node("Unsqueeze", [f"{name}.rows", "two"], [sides[0]]))
            nodes.append(helper.make_node("Unsqueeze", [f"{name}.rows", "tokens"], [sides[1]]))
            nodes.append(helper.make_node("Sub", sides, [name]))
        else:
            nodes.append(helper.make_node("ReduceSum", [f"{name}.rows", "tokens"], [name], keepdims=0))
        shape = ["batch", *(columns if axis == "labels" else axis for axis in axes)]
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    numbers = {"last": -1, "tokens": 1, "two": 2}
    constants += [numpy_helper.from_array(np.array([number]), name) for name, number in numbers.items()]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    built = helper.make_graph(nodes, "tiny", [ids], infos, constants)
    onnx.save(helper.make_model(built, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)


INPUTS = {
    "multi-label-classification": (inputs_of(TEXTS), ("joy", "fear"), {"thresholds": {"joy": 0.3, "fear": 0.3}}),
    "regression": (inputs_of(TEXTS), (), {"mean": 3.0, "deviation": 2.0}),
    "question-answering": (
        [Question(question="where is anna ?", context=CONTEXT), Question(question="who ?", context=CONTEXT * 9)],
        (),
        {"stride": 16, "no_answer_threshold": 0.0},
    ),
    "relation-extraction": (
        [Related(text="anna lives in london"), Related(text=CONTEXT, entities=[{"start": 0, "end": 4, "label": "A"}])],
        ("O", "B-A", "I-A"),
        {"relations": ["of", "in"]},
    ),
    "multi-task": (
        [MultiTask.Input(text=TEXTS[0]), MultiTask.Input(text=TEXTS[1], heads=["intent"])],
        (),
        {
            "heads": {
                "intent": {"method": "text-classification", "labels": ["play", "stop"]},
                "slots": {"method": "token-classification", "labels": ["O", "B-A", "I-A"]},
            }
        },
    ),
}


@pytest.fixture(params=INPUTS)
def served(request, serve, make_package, tmp_path):
    """A client of a service of the task, the task, its inputs, and the answers that the predictor gives."""
    name = request.param
    inputs, labels, options = INPUTS[name]
    task = tasks.load(name, tasks.load(name).Options.model_validate(options))
    columns = dict.fromkeys(task.OUTPUTS, max(len(labels), 1))
    if hasattr(task, "heads"):
        spec = tasks.Spec(labels, tasks.load(name).Options.model_validate(options))
        columns = {output: len(names) for output, names in task.heads(spec).items()}
    package = make_package(
        tmp_path / "package",
        before=lambda folder: graph(folder / GRAPH, task.OUTPUTS, columns),
        questions=inputs,
        task=name,
        labels=labels,
        task_options=options,
    )
    return serve(package.path), task, inputs, package


def expected(package, inputs):
    return [answer.model_dump() for answer in Predictor.load(package, 1).answers(inputs)]


def approximately(answers):
    """Answers whose numbers may differ in the last digits: batches differ."""
    return json.loads(json.dumps(answers), parse_float=lambda text: round(float(text), 4))


def test_the_service_answers_as_the_predictor_does(served):
    client, task, inputs, package = served
    body = {"texts": TEXTS} if task.Input is tasks.TextInput else {"inputs": [item.model_dump() for item in inputs]}
    response = client.post(PREDICT, json_body=body)
    assert response.status == 200, response.content
    assert approximately(response.json()["predictions"]) == approximately(expected(package, inputs))
    assert client.post(PREDICT, json_body={"nothing": 1}).status == 422


def test_the_inference_api_gives_what_a_pipeline_gives(served):
    client, task, inputs, package = served
    if "pipeline" not in task.CAPABILITIES:
        assert client.post("/models/tiny", json_body={"inputs": TEXTS}).status == 404
        return
    items = TEXTS if task.Input is tasks.TextInput else [item.model_dump(exclude={"contexts"}) for item in inputs]
    response = client.post("/models/tiny", json_body={"inputs": items})
    assert response.status == 200, response.content
    answers = [task.Answer.model_validate(answer) for answer in expected(package, inputs)]
    assert approximately(response.json()) == approximately([task.pipeline(answer, None) for answer in answers])


def test_open_inference_clients_get_the_answer_and_the_tensors_of_the_task(served):
    client, task, inputs, package = served
    metadata = client.get("/v2/models/tiny").json()
    names = [tensor["name"] for tensor in metadata["inputs"]]
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [len(inputs)], "data": [getattr(item, name) for item in inputs]}
        for name in names
        if isinstance(getattr(inputs[0], name), str)
    ]
    response = client.post("/v2/models/tiny/infer", json_body={"inputs": tensors})
    assert response.status == 200, response.content
    outputs = {output["name"]: output for output in response.json()["outputs"]}
    assert set(outputs) == {tensor["name"] for tensor in metadata["outputs"]}
    answers = [json.loads(text) for text in outputs["answer"]["data"]]
    plain = [task.Input(**{name: getattr(item, name) for name in names}) for item in inputs]
    assert approximately(answers) == approximately(expected(package, plain))
    assert ("scores" in outputs) == ("tensors" in task.CAPABILITIES)


def test_the_page_knows_the_fields_of_an_input_and_the_routes_that_are_there(served):
    client, task, _, _ = served
    about = client.get("/v1/model").json()
    assert about["fields"] == (["question", "context"] if task.Input is Question else ["text"])
    assert about["explains"] == ("explain" in task.CAPABILITIES)
    assert (client.post("/v1/explain", json_body={"texts": ["a film"]}).status != 404) == about["explains"]


def test_labels_and_answers_are_counted(served):
    client, task, inputs, package = served
    body = {"texts": TEXTS} if task.Input is tasks.TextInput else {"inputs": [item.model_dump() for item in inputs]}
    client.post(PREDICT, json_body=body)
    page = client.get("/metrics").content.decode()
    assert "deploykit_input_tokens_count 2.0" in page
    counted = sum(
        float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith("deploykit_predictions_total{")
    )
    predictor = Predictor.load(package, 1)
    observed = task.observe(predictor.predict(inputs), predictor.spec)
    assert counted == len(observed.labels)
    assert (counted > 0) == (task is not tasks.load("regression"))
