"""Every error that deploykit raises on purpose, and the exit code each one stands for.

    DeploykitError              3   something inside went wrong
    ├── GateError               1   a gate failed or was inconclusive
    ├── EngineError             3   an engine's answer cannot be right
    ├── GraphError              3   a graph cannot be written in the form that was asked for
    ├── ServiceError            3   a running service refused a request, or did not answer
    └── InputError              2   what was given is wrong; the message says what to do
        ├── RecipeError             the recipe, with every mistake in it
        ├── DataError               the labelled data, with line numbers
        ├── ModelError              the base model
        ├── ArtifactError           a damaged, foreign or newer artifact
        ├── MethodError             a method that is not in its folder
        ├── MissingExtraError       an extra that is not installed
        ├── LibraryError            a library in a version that does not fit
        ├── BusyError               a directory or a port that is taken
        └── StorageError            no space or no permission

A message says what was expected, what was found and what to do next.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path

FULL_NUMBERS = (ENOSPC, EDQUOT)
SERVING_EXTRAS = ("jwt", "otel", "presidio", "redis", "sign")  # that a recipe can put into a package's requirements


class DeploykitError(Exception):
    """Root of the tree; `exit_code` is what the command line returns."""

    exit_code = 3


class GateError(DeploykitError):
    """A gate of the recipe failed, or was inconclusive."""

    exit_code = 1


class EngineError(DeploykitError):
    """An engine's answer cannot be right, whatever the values in it: it has not a row for each row of the batch."""


class GraphError(DeploykitError):
    """A graph cannot be written in the form that was asked for."""


class ServiceError(DeploykitError):
    """A running service refused a request or did not answer; `status` is None where there was no answer at all."""

    def __init__(self, message: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id


class InputError(DeploykitError):
    """What the user gave cannot be used as it is."""

    exit_code = 2


class RecipeError(InputError):
    """The recipe holds one or more mistakes; all of them are listed."""


class DataError(InputError):
    """The labelled data cannot be trained on as it is."""


class ModelError(InputError):
    """The base model cannot be loaded or is of a kind that is not supported."""


class ArtifactError(InputError):
    """A directory is no artifact, is damaged, or is newer than this version."""


class MethodError(InputError):
    """A method's name is not in its folder."""


class MissingExtraError(InputError):
    """A package of an optional extra is not installed."""


def extra_missing(wanted_by: str, package: str | None, extra: str) -> MissingExtraError:
    """Says which extra brings a package that is not installed, and how to add it.

    By no name of a registry: what is called deploykit there need not be this.
    """
    pinned = f", or in the recipe with `serve: {{extras: [{extra}]}}`, for the package and its image"
    return MissingExtraError(
        f"{wanted_by} needs the package {package!r}, which is not installed. Add it in the directory of deploykit's"
        f" source: pip install '.[{extra}]'{pinned if extra in SERVING_EXTRAS else ''}"
    )


class LibraryError(InputError):
    """A library is installed in a version that does not work with this one of deploykit."""


class BusyError(InputError):
    """Somebody else is using the directory or the port."""


class StorageError(InputError):
    """The disk is full or refuses to be written."""


def disk_is_full(error: BaseException) -> bool:
    """Says whether an error, or what caused it, is that of a full disk or of a quota that is used up.

    Libraries in other languages raise errors of their own, without a number: there the system's text tells.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        if number in FULL_NUMBERS or any(os.strerror(full) in str(cause) for full in FULL_NUMBERS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def storage_errors(path: Path, choice: str = "`output:` in the recipe") -> Iterator[None]:
    """Turns a full disk and a refused access below `path` into a `StorageError`.

    Args:
        path: of what is written.
        choice: what names another place, for the message.

    Raises:
        StorageError: on ENOSPC, EDQUOT, EACCES, EPERM or EROFS.
    """
    try:
        yield
    except DeploykitError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        where = (error.filename if isinstance(error, OSError) else None) or path
        if number in (EACCES, EPERM, EROFS):
            raise StorageError(
                f"no permission for {where}. Give this user access to it, or choose another place with {choice}."
            ) from error
        if disk_is_full(error):
            raise StorageError(
                f"no space left on the disk while writing {where}. Free some space and run the same"
                " command again: finished stages are kept."
            ) from error
        raise
