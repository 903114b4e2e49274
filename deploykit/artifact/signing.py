"""Who made it: signatures over whole artifacts, in the format of the OpenSSF's model signing.

A signature lies beside the files and names each of them with its hash; it is made and checked with elliptic curve
keys, so neither needs a network. The tool `model_signing` checks it as well. Code that Python has compiled belongs to
no artifact, and where signatures count it may not lie there: it would run in place of the source that was signed.

A service that checks itself finds files that were exchanged. Code that was changed so as not to check is found by
what looks before it runs: `deploykit verify --key`, and `deploykit serve`.
"""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploykit.artifact import SIGNATURE, STORED, Artifact
from deploykit.errors import ArtifactError, InputError, extra_missing, storage_errors

COMPILED = "__pycache__"


def sign(path: Path | str, key: Path, password: str | None = None) -> Artifact:
    """Signs an artifact, once its files are found to be as they were made; an older signature is replaced.

    Where BentoML's model store holds this very package, the signature goes there, too.

    Args:
        path: its directory.
        key: a file in PEM with the private key, on the curve P-256, P-384 or P-521.
        password: of the file, where it is encrypted.

    Raises:
        ArtifactError: a file is not what the manifest says, or is a link.
        InputError: the key cannot be read.
        MissingExtraError: the library is not installed.

    Example:
        >>> sign("runs/movie-reviews/package", Path("private.pem"))  # doctest: +SKIP
    """
    library, artifact = _library(), Artifact.load(path)
    artifact.verify()
    _require_no_compiled(artifact)
    try:
        secret = password.encode() if password else None
        signer = library.signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
    except Exception as error:  # of any kind: the file, its encryption, another kind of key
        raise _unusable("private", key, error) from error
    try:
        with storage_errors(artifact.path):
            signer.set_hashing_config(_hashing(artifact)).sign(artifact.path.resolve(), artifact.file(SIGNATURE))
    except ValueError as error:
        raise ArtifactError(f"{artifact.path} cannot be signed: {str(error).rstrip('.')}.") from error
    _sign_stored(artifact)
    return artifact


def check(artifact: Artifact, key: Path) -> None:
    """Makes sure that every file of an artifact was signed by a key; the manifest is compared by `Artifact.verify`.

    Args:
        artifact: what must be signed.
        key: a file in PEM with the public key.

    Raises:
        ArtifactError: there is no signature, it is of another key, or of other files.
        InputError: the key cannot be read.
        MissingExtraError: the library is not installed.
    """
    verifier = _verifier(key)
    if not artifact.file(SIGNATURE).is_file():
        raise ArtifactError(
            f"{artifact.path} is not signed: it has no {SIGNATURE}. Sign it with: deploykit sign PACKAGE --key PRIVATE"
        )
    _require_no_compiled(artifact)
    try:
        verifier.set_hashing_config(_hashing(artifact)).verify(artifact.path.resolve(), artifact.file(SIGNATURE))
    except Exception as error:  # a damaged signature fails in many ways, and each of them is a refusal
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise ArtifactError(
            f"{artifact.path} is not as the owner of {key} signed it: {reason}. Restore what was signed,"
            " or sign it again if the change is yours."
        ) from error


def require_key(key: Path) -> None:
    """Makes sure that signatures can be checked at all, before a service starts.

    Raises:
        InputError: the key cannot be read.
        MissingExtraError: the library is not installed.
    """
    _verifier(key)


def _verifier(key: Path) -> Any:
    library = _library()
    try:
        return library.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:
        raise _unusable("public", key, error) from error


def _library() -> Any:
    try:
        import model_signing
    except ModuleNotFoundError as error:
        raise extra_missing("a signature", error.name, "sign") from error
    return model_signing


def _hashing(artifact: Artifact) -> Any:
    """Returns what is signed: every file but the signature itself, and the one that BentoML's model store adds."""
    ignored = [SIGNATURE, *([STORED] if artifact.file(STORED).is_file() else [])]
    return _library().hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _require_no_compiled(artifact: Artifact) -> None:
    found = next(artifact.path.rglob(COMPILED), None)
    if found is not None:
        raise ArtifactError(
            f"{found} holds compiled code, which nobody signs and which would run in place of its source. Delete it;"
            " with PYTHONDONTWRITEBYTECODE=1 Python does not write it again."
        )


def _unusable(kind: str, key: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
    return InputError(
        f"the {kind} key {key} cannot be used ({reason}). It must be a PEM file with the {kind} key of an elliptic"
        " curve: P-256, P-384 or P-521."
    )


def _sign_stored(artifact: Artifact) -> None:
    import bentoml  # slow to import, and only who signs needs the store

    with suppress(bentoml.exceptions.BentoMLException):  # it is not stored, which is nobody's fault
        shutil.copy(artifact.file(SIGNATURE), bentoml.models.get(artifact.tag).path)
