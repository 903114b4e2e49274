"""Images and tiny models that read them, made in code."""

import base64
import io
import itertools
import json

import numpy as np

SIZE = 16  # of the pixels that the tiny models read
COLOURS = {"red": (220, 40, 40), "blue": (40, 40, 220)}
PREPROCESSING = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PIXELS = {"image_size": SIZE, "patch_size": 4}


def noise(width=20, height=14, seed=0, mode="RGB"):
    """An image of random pixels, as Pillow has it."""
    from PIL import Image

    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), mode)


def encoded(image, form="PNG", **options):
    """The bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, format=form, **options)
    return stream.getvalue()


def data_url(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def painted(colour, seed=0):
    """A file with a patch of a colour on noise."""
    from PIL import Image

    image = noise(20, 14, seed).resize((20, 14))
    image.paste(Image.new("RGB", (12, 9), COLOURS[colour]), (seed % 8, seed % 5))
    return encoded(image)


def write_rows(folder, counts, with_text=False):
    """Writes images and a file of rows for each split: the label is the colour, or whether the text names it."""
    seeds = itertools.count()
    for split, count in counts.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(count):
            colour, seed = ("red", "blue")[number % 2], next(seeds)
            path = f"{split}/{number}.png"
            (folder / path).write_bytes(painted(colour, seed))
            asked = ("red", "blue")[number // 2 % 2]
            with_question = {"text": f"is it {asked} ?", "label": "yes" if asked == colour else "no"}
            rows.append({"image": path, **(with_question if with_text else {"label": colour})})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_vit(folder, labels=("blue", "red")):
    """A ViT of two layers with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**LAYERS, **PIXELS, **names))
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return folder


def write_two_towers(folder, kind="clip"):
    """A CLIP or SigLIP of two layers with random weights, and a tokenizer of words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "is", "it", "red", "blue", "?", "a", "great", "film"]
    ids = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("<bos>", 1), ("<eos>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=special)
    text = {"vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    family = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    config = getattr(transformers, f"{family}Config")(
        text_config={**LAYERS, **text, "pad_token_id": 0, **({"projection_size": 32} if kind == "siglip" else {})},
        vision_config={**LAYERS, **PIXELS},
        **({"projection_dim": 24} if kind == "clip" else {}),
    )
    model = getattr(transformers, f"{family}Model")(config)
    with torch.no_grad():  # drawn as usual, texts are almost the same, and little is learned in a few epochs
        model.text_model.embeddings.token_embedding.weight.normal_()
    model.save_pretrained(folder, safe_serialization=True)
    backend.save(str(folder / "tokenizer.json"))
    tokens = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 16, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return folder


def write_graph(file, with_text=False):
    """Writes a graph whose logits are the blue and the red of an image, and of a text the weights of its tokens."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "edges"], ["colours"], keepdims=0),
        helper.make_node("Gather", ["colours", "order"], ["image" if with_text else "logits"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array(value), name) for name, value in (("edges", [2, 3]), ("order", [2, 0]))
    ]
    infos = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])]
    if with_text:
        weights = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
        constants += [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1]), "tokens")]
        nodes += [
            helper.make_node("Gather", ["weights", "input_ids"], ["rows"]),
            helper.make_node("ReduceSum", ["rows", "tokens"], ["text"], keepdims=0),
            helper.make_node("Add", ["image", "text"], ["logits"]),
        ]
        infos.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "tiny", infos, [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)


def write_package(make_package, target, with_text=False, **changes):
    """Writes a package for images, alone or with a text, whose answers are known: see `write_graph`."""
    from deploykit import artifact
    from deploykit.tasks.image_classification import Input

    def fill(folder):
        write_graph(folder / artifact.GRAPH, with_text)
        (folder / artifact.PREPROCESSOR).write_text(json.dumps(PREPROCESSING))
        (folder / artifact.CONFIG).write_text(json.dumps({"model_type": "vit", "patch_size": 4}))
        if not with_text:
            (folder / artifact.TOKENIZER).unlink()

    text = {"text": "a great film"} if with_text else {}
    return make_package(
        target,
        before=fill,
        questions=[Input(image=painted(colour, 3), **text) for colour in COLOURS],
        task="image-classification",
        labels=("blue", "red"),
        pair=with_text,
        max_tokens=17 + 64 * with_text,
        **{"serve": artifact.ServeOptions(max_body_bytes=12 * 2**20), **changes},
    )
