"""Writes the handwritten digits that come with scikit-learn as PNG files, and small models with random weights.

There are 1,797 images of 8 x 8 pixels: 1,200 to train, 297 to validate, 300 to test. With `questions`, each image has
three questions such as "is this a seven ?", one about its own digit and two about others, whose answer is yes or no.
The models read 32 x 32 pixels and know nothing before training: a ViT for images, a CLIP for images with questions.

    python benchmarks/tasks/digits.py images runs/digits-data
    python benchmarks/tasks/digits.py questions runs/digit-questions-data
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SIZES = {"train": 1200, "validation": 297, "test": 300}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
QUESTION = "is this a {} ?"
SIDE, PATCH = 32, 8  # pixels
LAYERS = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
PREPROCESSING = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def rows_of(path: str, digit: int, draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yields the rows of an image with questions; the answer to two of three is no."""
    others = draw.permutation([other for other in range(10) if other != digit])[:2]
    for asked in (digit, *others):
        yield {"image": path, "text": QUESTION.format(WORDS[asked]), "label": "yes" if asked == digit else "no"}


def write_data(folder: Path, *, questions: bool) -> None:
    """Writes the images, and the rows of each split."""
    digits, draw = load_digits(), np.random.default_rng(0)
    order, start = draw.permutation(len(digits.target)), 0
    for split, size in SIZES.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for index in order[start : start + size]:
            path, digit = f"{split}/{index}.png", int(digits.target[index])
            Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8)).save(folder / path)
            rows += rows_of(path, digit, draw) if questions else [{"image": path, "label": digit}]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        start += size


def write_vit(folder: Path) -> None:
    """Writes a ViT with random weights; its labels are the digits, so that it can be evaluated untrained, too."""
    names = {str(digit): digit for digit in range(10)}
    labels = {"label2id": names, "id2label": {index: name for name, index in names.items()}}
    config = transformers.ViTConfig(**LAYERS, image_size=SIDE, patch_size=PATCH, **labels)
    transformers.ViTForImageClassification(config).save_pretrained(folder)


def write_clip(folder: Path) -> None:
    """Writes a CLIP with random weights, and a tokenizer of the questions' words."""
    words = [*SPECIAL, *QUESTION.replace("{}", "").split(), *WORDS]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<bos>", 1), ("<eos>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**LAYERS, **tokens, "vocab_size": len(words), "max_position_embeddings": 16}
    vision = {**LAYERS, "image_size": SIDE, "patch_size": PATCH}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    model = transformers.CLIPModel(config)
    with torch.no_grad():  # drawn as usual, the embeddings of two questions are almost the same, and nothing is learned
        model.text_model.embeddings.token_embedding.weight.normal_(std=1.0)
    model.save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 16, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def main() -> None:
    """Writes the data and the model into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("images", "questions"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    questions, model = arguments.kind == "questions", arguments.folder / "model"
    write_data(arguments.folder, questions=questions)
    (write_clip if questions else write_vit)(model)
    (model / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING), encoding="utf-8")


if __name__ == "__main__":
    main()
