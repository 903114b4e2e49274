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
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder, safe_serialization=True)
    backend.save(str(folder / "tokenizer.json"))
    tokens = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 16, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return folder
