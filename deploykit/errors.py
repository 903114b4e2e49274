"""The errors that deploykit raises on purpose, with their exit codes.

    DeploykitError              3   something inside went wrong
    ├── GateError               1   a gate failed or was inconclusive
    ├── EngineError             3   an engine returned an impossible result
    ├── GraphError              3   a graph cannot be written in the requested form
    ├── ServiceError            3   a running service refused a request, or did not answer
    └── InputError              2   the user's input is wrong; the message says what to do
        ├── RecipeError             the recipe, with every mistake in it
        ├── DataError               the labelled data, with line numbers
        ├── ImageError              an image that cannot be read; also a ValueError
        ├── ModelError              the base model
        ├── ArtifactError           an artifact that is damaged, foreign or newer
        ├── MethodError             a method that does not exist
        ├── MissingExtraError       an extra that is not installed
        ├── LibraryError            an incompatible version of a library
        ├── BusyError               a directory or a port that is in use
        └── StorageError            no space or no permission

A message says what was expected, what was found and what to do next.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path

FULL_DISK_ERRNOS = (ENOSPC, EDQUOT)
SERVING_EXTRAS = ("jwt", "otel", "presidio", "redis", "sign")  # pip extras that `serve.extras` in a recipe can name


class DeploykitError(Exception):
    """Base class of all; `exit_code` is the exit code of the command line."""

    exit_code = 3


class GateError(DeploykitError):
    """A gate of the recipe failed, or was inconclusive."""

    exit_code = 1


class EngineError(DeploykitError):
    """An engine returned another number of rows than the batch has."""


class GraphError(DeploykitError):
    """A graph cannot be written in the requested form."""


class ServiceError(DeploykitError):
    """A running service refused a request or did not answer; `status` and `request_id` are None without an answer."""

    def __init__(self, message: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id


class InputError(DeploykitError):
    """The user's input cannot be used."""

    exit_code = 2


class RecipeError(InputError):
    """The recipe has mistakes, all of which are listed."""


class DataError(InputError):
    """The labelled data cannot be used for training."""


class ImageError(InputError, ValueError):
    """An image is damaged, too large or of another format."""


class ModelError(InputError):
    """The base model cannot be loaded or is not supported."""


class ArtifactError(InputError):
    """A directory is not an artifact, or one that is damaged or newer than this version."""


class MethodError(InputError):
    """No method has this name."""


class MissingExtraError(InputError):
    """A package of an optional extra is not installed."""


def missing_extra_error(wanted_by: str, package: str | None, extra: str) -> MissingExtraError:
    """Returns an error that says how to install a missing package.

    The command installs from the source, because a package called deploykit in a registry need not be this one.

    Args:
        wanted_by: who needs the package.
        package: its name.
        extra: the pip extra of deploykit that brings it.
    """
    recipe_advice = f", or in the recipe with `serve: {{extras: [{extra}]}}`, for the package and its image"
    return MissingExtraError(
        f"{wanted_by} needs the package {package!r}, which is not installed. Add it in the directory of deploykit's"
        f" source: pip install '.[{extra}]'{recipe_advice if extra in SERVING_EXTRAS else ''}"
    )


class LibraryError(InputError):
    """The installed version of a library does not work with this version of deploykit."""


class BusyError(InputError):
    """Another process uses the directory or the port."""


class StorageError(InputError):
    """The disk is full or cannot be written."""


def disk_is_full(error: BaseException) -> bool:
    """Tells whether an error, or one of its causes, means a full disk or an exhausted quota.

    Errors of libraries in other languages have no error number, but their text contains the system's message.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        if number in FULL_DISK_ERRNOS or any(os.strerror(full) in str(cause) for full in FULL_DISK_ERRNOS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def storage_errors(path: Path, choice: str = "`output:` in the recipe") -> Iterator[None]:
    """Turns a full disk and missing permissions into a `StorageError`.

    Args:
        path: the file or directory that is written, for an error that names no file.
        choice: the option with which the user can choose another place, for the message.

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
