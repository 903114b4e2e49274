"""The whole path of images, alone and with texts, on tiny models: from files to the answers of a service."""

import json

import pytest
from asgi import Client
from pictures import PREPROCESSING, data_url, painted, write_rows, write_two_towers, write_vit
from task_graphs import BETWEEN_BATCHES, close

from deploykit import pipeline, recipe
from deploykit.artifact import Artifact
from deploykit.errors import InputError
from deploykit.images import ImageTokenizer
from deploykit.inference import golden
from deploykit.inference.predictor import Predictor
from deploykit.serving.service import build
from deploykit.tasks.image_classification import Input

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
MODELS = {"vit": write_vit, "clip alone": write_two_towers, "clip": write_two_towers, "siglip": write_two_towers}


@pytest.fixture(scope="module", params=MODELS)
def packaged(request, tmp_path_factory):
    """The name of the model, and the outcomes of a run."""
    name, folder = request.param, tmp_path_factory.mktemp("images")
    with_text = name in ("clip", "siglip")
    write_rows(folder, {"train": 96, "validation": 32, "test": 32}, with_text)
    model = folder / "model"
    MODELS[name](model, *(["siglip"] if name == "siglip" else []))
    content = {
        "name": "tiny",
        "task": "image-classification",
        "model": str(model),
        "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test")},
        "train": {"method": "full", "epochs": 8, "learning_rate": 2e-3, "batch_size": 16, "bf16": "off"},
        "quantize": {"method": "dynamic"},
        "gates": {"max_drop": 0.5, "inconclusive": "accept"},
        "package": {"store": False, "golden": 8},
    }
    if with_text:
        content["data"]["text"] = "text"
    return name, pipeline.run(recipe.parse(content, folder))


def test_every_stage_keeps_what_was_learned(packaged):
    _, outcomes = packaged
    values = [outcome.artifact.manifest.step.metrics["test"]["accuracy"].value for outcome in outcomes]
    assert values[0] > 0.8, values
    assert min(values) > values[0] - 0.1


def question(name, colour="red"):
    return {"text": f"is it {colour} ?"} if name in ("clip", "siglip") else {}


def test_an_artifact_has_a_tokenizer_only_if_the_model_reads_texts(packaged):
    name, outcomes = packaged
    for outcome in outcomes:
        folder, manifest = outcome.artifact.path, outcome.artifact.manifest
        assert (folder / "preprocessor_config.json").is_file()
        assert (folder / "tokenizer.json").is_file() == manifest.pair == (name in ("clip", "siglip"))
        assert manifest.max_tokens == 17 + 16 * manifest.pair
        assert ImageTokenizer.load(folder, manifest.max_tokens).image_tokens == 17
        assert manifest.serve.max_body_bytes == 12 * 2**20


def test_batches_count_the_tokens_of_images(packaged):
    name, outcomes = packaged
    predictor = Predictor.load(outcomes[-1].artifact, 1)
    assert isinstance(predictor.tokenizer, ImageTokenizer)
    (features,) = predictor.encode([Input(image=painted("red"), **question(name))])[0]
    expected = {"vit": 17, "clip alone": 17, "clip": 17 + 6, "siglip": 17 + 16}[name]
    assert len(features) == expected
    (batch,) = [predictor.tokenizer.collate([features.encoding])]
    widths = {array.shape[1] for array in batch.values()}
    assert widths == ({expected - 17} if batch else set())


def test_the_golden_set_holds_small_images_and_is_verified(packaged):
    _, outcomes = packaged
    package = outcomes[-1].artifact
    questions = golden.load(package)
    assert len(questions.inputs) == 8
    assert all(len(item["image"]) < 2000 for item in questions.inputs)
    golden.verify(package.path)


def test_a_changed_image_file_changes_the_content_key(packaged, tmp_path):
    from deploykit import data, tasks
    from deploykit.recipe import DataSection

    folder = write_rows(tmp_path, {"train": 4})
    task, section = tasks.load("image-classification"), DataSection(train=str(folder / "train.jsonl"))
    before = data.fingerprint(section, 0, task)
    assert data.fingerprint(section, 0, task) == before
    (folder / "train/0.png").write_bytes(painted("blue", 77))
    assert data.fingerprint(section, 0, task) != before


def test_the_package_is_served_with_the_same_answers_in_every_form(packaged, monkeypatch):
    name, outcomes = packaged
    package = Artifact.load(outcomes[-1].artifact.path)
    monkeypatch.setenv("DEPLOYKIT_AUTH", "off")
    images, extra = [painted("red", 5), painted("blue", 6)], question(name)
    answers = Predictor.load(package, 1).answers([Input(image=image, **extra) for image in images])
    expected = json.loads(json.dumps([answer.model_dump() for answer in answers]))
    if not extra:
        assert [answer.label for answer in answers] == ["red", "blue"]
        assert Predictor.load(package, 1).answers(images) == answers
    with Client(build(package.path).to_asgi()) as client:

        def asked(**body):
            response = client.post("/v1/predict", **body)
            assert response.status == 200, response.text
            return response.json()["predictions"]

        inputs = [{"image": data_url(image), **extra} for image in images]
        assert close(asked(json_body={"inputs": inputs}), expected, BETWEEN_BATCHES)
        headers = {"content-type": "multipart/form-data; boundary=x7"}
        parts = [("image", image, b'; filename="a.png"') for image in images]
        parts += [("text", text.encode(), b"") for text in extra.values() for _ in images]
        form = b"".join(
            b'--x7\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (field.encode(), file, value)
            for field, value, file in parts
        )
        assert close(asked(content=form + b"--x7--\r\n", headers=headers), expected, BETWEEN_BATCHES)
        tensors = [
            {"name": field, "shape": [2], "datatype": "BYTES", "data": [item[field] for item in inputs]}
            for field in inputs[0]
        ]
        infer = client.post("/v2/models/tiny/infer", json_body={"inputs": tensors}).json()["outputs"]
        assert close(list(map(json.loads, infer[0]["data"])), expected, BETWEEN_BATCHES)
        if not extra:
            raw = {"content-type": "image/png"}
            assert close(asked(content=images[0], headers=raw), expected[:1], BETWEEN_BATCHES)
            ranked = client.post("/models/tiny", content=images[0], headers=raw).json()
            assert [part["label"] for part in ranked] == ["red", "blue"]


def test_what_is_no_image_is_refused_with_what_is_allowed(packaged, monkeypatch):
    name, outcomes = packaged
    monkeypatch.setenv("DEPLOYKIT_AUTH", "off")
    extra, good = question(name), painted("red")
    with Client(build(outcomes[-1].artifact.path).to_asgi()) as client:

        def refused(item):
            response = client.post("/v1/predict", json_body={"inputs": [item]})
            return response.status, json.dumps(response.json())

        for image, message in (
            ("no base64!", "PNG, JPEG or WebP"),
            (data_url(b"GIF89a"), "PNG, JPEG or WebP"),
            (data_url(good[:60]), "damaged"),
        ):
            status, text = refused({"image": image, **extra})
            assert (status, message in text) == (422, True), text
        wrong = {"image": data_url(good)} if extra else {"image": data_url(good), "text": "a text"}
        status, text = refused(wrong)
        assert (status, "an input of this model is" in text) == (422, True), text
        large = client.post("/v1/predict", content=bytes(12 * 2**20 + 1), headers={"content-type": "image/png"})
        assert large.status == 413
        odd = client.post("/v1/predict", content=b"x", headers={"content-type": "image/gif"})
        assert (odd.status, "image/webp" in odd.json()["detail"]) == (415, True)
        broken = client.post("/v1/predict", content=b"x", headers={"content-type": "multipart/form-data"})
        assert broken.status == 400


def test_models_that_cannot_be_used_are_refused_before_training(tmp_path):
    write_rows(tmp_path, {"train": 20}, with_text=True)
    vit, clip = write_vit(tmp_path / "vit"), write_two_towers(tmp_path / "clip")
    plain = {"name": "tiny", "task": "image-classification", "data": {"train": "train.jsonl"}, "model": str(vit)}

    def refusal(**changes):
        with pytest.raises(InputError) as caught:
            pipeline.plan(recipe.parse({**plain, **changes}, tmp_path))
        return str(caught.value)

    with_text = {"train": "train.jsonl", "text": "text"}
    assert "type 'vit', which reads no images with texts: known are clip, siglip" in refusal(data=with_text)
    pruned = refusal(model=str(clip), data=with_text, prune={"method": "width", "keep": 0.5})
    assert "models of type 'clip' cannot be pruned" in pruned
    assert "serve.redact masks personal data in texts" in refusal(serve={"redact": True})
    assert "cannot be loaded as AutoModelForSequenceClassification" in refusal(
        task="text-classification", model=str(clip)
    )
    (vit / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSING, "crop_pct": 0.9}))
    assert "crop_pct: 0.9 would change the pixels" in refusal()
    (vit / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json" in refusal()
    (vit / "processor_config.json").write_text(json.dumps({"image_processor": PREPROCESSING}))
    assert pipeline.plan(recipe.parse(plain, tmp_path))
    (vit / "processor_config.json").write_text(
        json.dumps({"image_processor": {**PREPROCESSING, "auto_map": {"a": "b"}}})
    )
    assert "code of its own" in refusal()


def test_a_model_that_reads_another_size_is_refused_before_training(tmp_path):
    write_rows(tmp_path, {"train": 30})
    vit = write_vit(tmp_path / "vit")
    (vit / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSING, "size": {"height": 32, "width": 32}}))
    content = {"name": "tiny", "task": "image-classification", "data": {"train": "train.jsonl"}, "model": str(vit)}
    with pytest.raises(InputError, match="fails on an image of 32 x 32 pixels, to which its preprocessor_config"):
        pipeline.run(recipe.parse(content, tmp_path))


def test_tokens_of_images_are_counted_by_the_patches_that_a_configuration_names_or_means():
    from transformers import ConvNextConfig, SiglipConfig, SwinConfig, ViTConfig

    from deploykit.modeling.base_images import count_tokens

    configs = (ViTConfig(), SiglipConfig().vision_config, SwinConfig(), ConvNextConfig())
    assert [count_tokens(config, (224, 224)) for config in configs] == [197, 197, 50, 50]
    assert count_tokens(ViTConfig(), (8, 20)) == 2


@pytest.mark.filterwarnings("ignore")
def test_transformers_opens_the_image_processor_of_an_artifact(packaged):
    import transformers

    processor = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    opened = processor.from_pretrained(packaged[1][-1].artifact.path)
    assert dict(opened.size) == PREPROCESSING["size"]
