"""The service of a package that is in BentoML's model store, for `bentoml build` from a repository.

`bentofile.yaml` gives the package the alias `package`. BentoML puts that model into the Bento, and this module finds it
wherever the Bento runs. `DEPLOYKIT_PACKAGE` may name a directory instead.
"""

import os
from pathlib import Path

import bentoml
from bentoml.exceptions import BentoMLConfigException, NotFound

from deploykit.serving.service import build
from deploykit.serving.settings import PACKAGE_VARIABLE

ALIAS = "package"  # of the package in the `models` of bentofile.yaml


def stored_package() -> Path:
    """Returns the directory of the package.

    Raises:
        BentoMLConfigException: the model store has no such package.
    """
    try:
        return Path(os.environ.get(PACKAGE_VARIABLE) or bentoml.models.get(ALIAS).path)
    except NotFound as error:
        raise BentoMLConfigException(
            f"{error} Expected a package under the alias {ALIAS!r} in the `models` of bentofile.yaml."
            f" Run the recipe first, which stores its package, or set {PACKAGE_VARIABLE} to a package's directory."
        ) from error


service = build(stored_package())
