"""deploykit: from labelled text to a verified, running transformer service.

The public names are imported on first use, so importing the package is quick, and a service loads only what it needs.

Example:
    >>> import deploykit
    >>> outcomes = deploykit.run(deploykit.load_recipe("recipe.yaml"))  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deploykit import no_telemetry

__version__ = "0.1.0"
no_telemetry.switch_off()  # before other libraries are imported

if TYPE_CHECKING:
    from deploykit.artifact import Artifact
    from deploykit.artifact.signing import sign
    from deploykit.client import AsyncClient, Client
    from deploykit.inference.golden import verify
    from deploykit.inference.predictor import Predictor
    from deploykit.methods import available
    from deploykit.pipeline import export, package, prune, quantize, run, train
    from deploykit.recipe import Recipe
    from deploykit.recipe import load as load_recipe
    from deploykit.serving.launch import serve
    from deploykit.stages.explanation import explain_quantization
    from deploykit.stages.retuning import retune

# The module below `deploykit` that defines a public name; `module:attribute` where the names differ.
_MODULE_OF_NAME = {
    "Artifact": "artifact",
    **dict.fromkeys(("AsyncClient", "Client"), "client"),
    "Predictor": "inference.predictor",
    "Recipe": "recipe",
    "available": "methods",
    "explain_quantization": "stages.explanation",
    "load_recipe": "recipe:load",
    **dict.fromkeys(("export", "package", "prune", "quantize", "run", "train"), "pipeline"),
    "retune": "stages.retuning",
    "serve": "serving.launch",
    "sign": "artifact.signing",
    "verify": "inference.golden",
}

__all__ = [
    "Artifact",
    "AsyncClient",
    "Client",
    "Predictor",
    "Recipe",
    "available",
    "explain_quantization",
    "export",
    "load_recipe",
    "package",
    "prune",
    "quantize",
    "retune",
    "run",
    "serve",
    "sign",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on its first use (PEP 562)."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'deploykit' has no attribute {name!r}")
    module, _, attribute = _MODULE_OF_NAME[name].partition(":")
    return getattr(import_module(f"deploykit.{module}"), attribute or name)
