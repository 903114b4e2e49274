"""Names of the files in an artifact, and their hashes."""

import hashlib
from pathlib import Path

FORMAT_VERSION, OLDEST_FORMAT = 4, 2  # of manifests: written, and the oldest that is read
MANIFEST = "manifest.json"
CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
GRAPH = "model.onnx"
FLOAT_GRAPH = "model_float32.onnx"  # beside the chosen graph, if that is a different one
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARY = "vocab.txt"
PREPROCESSOR = "preprocessor_config.json"  # of a model that reads images
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", VOCABULARY, PREPROCESSOR)
ARCHITECTURE = "deploykit_arch.json"
PREDICTIONS = "predictions.npz"
GOLDEN = "golden.json"
MODEL_CARD = "README.md"
SERVICE = "service.py"
BENTOFILE = "bentofile.yaml"
REQUIREMENTS = "requirements.txt"
LIBRARY = "deploykit"
SIGNATURE = "model.sig"
STORED = "model.yaml"  # written by BentoML's model store beside a package's files
PYCACHE = "__pycache__"
GENERATED = (PYCACHE, STORED)


def is_finished(path: Path) -> bool:
    """Tells whether a stage has finished this directory."""
    return (path / MANIFEST).is_file()


def sha256_of(file: Path) -> str:
    """Returns a file's sha256 in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
