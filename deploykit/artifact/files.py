"""Names of the files and directories in an artifact, and their hashes."""

import hashlib
from pathlib import Path

FORMAT_VERSION = 4  # of the manifests that are written
OLDEST_FORMAT_VERSION = 2  # that can be read
MANIFEST = "manifest.json"
CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
GRAPH = "model.onnx"
FLOAT_GRAPH = "model_float32.onnx"  # only if the chosen graph, `GRAPH`, is another one
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARY = "vocab.txt"
PREPROCESSOR = "preprocessor_config.json"  # of a model that reads images
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", VOCABULARY, PREPROCESSOR)
ARCHITECTURE = "deploykit_arch.json"  # sizes of the layers, if they differ from `CONFIG`
PREDICTIONS = "predictions.npz"
GOLDEN = "golden.json"
MODEL_CARD = "README.md"
SERVICE = "service.py"
BENTOFILE = "bentofile.yaml"
REQUIREMENTS = "requirements.txt"
LIBRARY = "deploykit"  # directory with the code that serves the package
SIGNATURE = "model.sig"
STORE_RECORD = "model.yaml"  # which BentoML's model store adds to its copy of a package
PYCACHE = "__pycache__"
TOOL_FILES = (PYCACHE, STORE_RECORD)  # what Python and BentoML add to a finished artifact


def is_finished(path: Path) -> bool:
    """Tells whether a directory is a finished artifact: its manifest is written last."""
    return (path / MANIFEST).is_file()


def sha256_of(file: Path) -> str:
    """Returns a file's sha256 in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
