"""Signs whole artifacts and checks signatures, in the format of the OpenSSF's model signing.

A signature is a file that lists all files with their hashes. It is made and checked with elliptic curve keys, without a
network; the tool `model_signing` can check it, too. Compiled Python code is refused, because it is not signed and would
run in place of the signed source.

A service that checks itself finds files that were replaced. Only a check from outside, by `deploykit verify --key` or
`deploykit serve`, finds code that was changed so that it does not check.
"""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploykit.artifact import PYCACHE, SIGNATURE, STORED, Artifact
from deploykit.errors import ArtifactError, InputError, missing_extra_error, storage_errors


def sign(path: Path | str, key: Path, password: str | None = None) -> Artifact:
    """Verifies and signs an artifact; an older signature is replaced.

    If BentoML's model store holds the same package, the signature is copied there.

    Args:
        path: the directory of the artifact.
        key: a PEM file with the private key, on the curve P-256, P-384 or P-521.
        password: of the file, if it is encrypted.

    Raises:
        ArtifactError: a file is a link, or differs from the manifest.
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
    except Exception as error:  # of many types: for the file, its encryption, another kind of key
        raise _unusable("private", key, error) from error
    try:
        with storage_errors(artifact.path):
            signer.set_hashing_config(_hashing(artifact)).sign(artifact.path.resolve(), artifact.file(SIGNATURE))
    except ValueError as error:
        raise ArtifactError(f"{artifact.path} cannot be signed: {str(error).rstrip('.')}.") from error
    _sign_stored(artifact)
    return artifact


def check(artifact: Artifact, key: Path) -> None:
    """Checks that the files of an artifact were signed with a key; `Artifact.verify` compares them with the manifest.

    Args:
        artifact: the signed artifact.
        key: a PEM file with the public key.

    Raises:
        ArtifactError: there is no signature, or it is by another key or of other files.
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
    except Exception as error:  # a damaged signature raises errors of many types
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise ArtifactError(
            f"{artifact.path} is not as the owner of {key} signed it: {reason}. Restore the signed files,"
            " or sign it again if the change is yours."
        ) from error


def require_key(key: Path) -> None:
    """Checks that signatures can be checked with a key, before a service starts.

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
        raise missing_extra_error("a signature", error.name, "sign") from error
    return model_signing


def _hashing(artifact: Artifact) -> Any:
    """Selects all files but the signature itself and the one that BentoML's model store adds."""
    ignored = [SIGNATURE, *([STORED] if artifact.file(STORED).is_file() else [])]
    return _library().hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _require_no_compiled(artifact: Artifact) -> None:
    folder = next(artifact.path.rglob(PYCACHE), None)
    if folder is not None:
        raise ArtifactError(
            f"{folder} holds compiled code, which is not signed and would run in place of its source. Delete it;"
            " with PYTHONDONTWRITEBYTECODE=1 Python does not write it again."
        )


def _unusable(kind: str, key: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
    return InputError(
        f"the {kind} key {key} cannot be used ({reason}). It must be a PEM file with the {kind} key of an elliptic"
        " curve: P-256, P-384 or P-521."
    )


def _sign_stored(artifact: Artifact) -> None:
    import bentoml  # slow to import

    with suppress(bentoml.exceptions.BentoMLException):  # it is not in the store
        shutil.copy(artifact.file(SIGNATURE), bentoml.models.get(artifact.tag).path)
