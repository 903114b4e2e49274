"""Signs whole artifacts and checks signatures, in the format of the OpenSSF's model signing.

A signature is a file that lists all files with their hashes. It is made and checked with elliptic curve keys, without a
network; the tool `model_signing` can check it, too. Compiled Python code is refused, because it is not signed and would
run in place of the signed source.

A service that checks its own package finds changed files, unless the code that checks was changed, too. Only a check
from outside, by `deploykit verify --key` or `deploykit serve`, finds that.
"""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploykit.artifact import PYCACHE, SIGNATURE, STORE_RECORD, Artifact
from deploykit.errors import ArtifactError, InputError, missing_extra_error, storage_errors


def sign(path: Path | str, key: Path, password: str | None = None) -> Artifact:
    """Verifies and signs an artifact; an older signature is replaced.

    If BentoML's model store holds the same package, the signature is copied there.

    Args:
        path: the directory of the artifact.
        key: a PEM file with the private key, on the curve P-256, P-384 or P-521.
        password: of the key file, if that is encrypted.

    Raises:
        ArtifactError: a file is a link, or differs from the manifest.
        InputError: the key cannot be read.
        MissingExtraError: the library `model_signing` is not installed.

    Example:
        >>> sign("runs/movie-reviews/package", Path("private.pem"))  # doctest: +SKIP
    """
    library, artifact = _import_library(), Artifact.load(path)
    artifact.verify()
    _refuse_compiled_code(artifact)
    try:
        secret = password.encode() if password else None
        signer = library.signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
    except Exception as error:  # one of many types, for an unreadable file, its encryption or another kind of key
        raise _unusable_key("private", key, error) from error
    try:
        with storage_errors(artifact.path):
            signer.set_hashing_config(_hashing_config(artifact)).sign(artifact.path.resolve(), artifact.file(SIGNATURE))
    except ValueError as error:
        raise ArtifactError(f"{artifact.path} cannot be signed: {str(error).rstrip('.')}.") from error
    _copy_signature_to_store(artifact)
    return artifact


def check(artifact: Artifact, key: Path) -> None:
    """Checks that the files of an artifact were signed with a key; `Artifact.verify` compares them with the manifest.

    Args:
        artifact: the signed artifact.
        key: a PEM file with the public key.

    Raises:
        ArtifactError: there is no signature, or it is by another key or of other files.
        InputError: the key cannot be read.
        MissingExtraError: the library `model_signing` is not installed.
    """
    verifier = _make_verifier(key)
    if not artifact.file(SIGNATURE).is_file():
        raise ArtifactError(
            f"{artifact.path} is not signed: it has no {SIGNATURE}. Sign it with: deploykit sign PACKAGE --key PRIVATE"
        )
    _refuse_compiled_code(artifact)
    try:
        verifier.set_hashing_config(_hashing_config(artifact)).verify(artifact.path.resolve(), artifact.file(SIGNATURE))
    except Exception as error:  # a damaged signature raises errors of many types
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise ArtifactError(
            f"{artifact.path} is not as the owner of {key} signed it: {reason}. Restore the signed files,"
            " or sign it again if the change is yours."
        ) from error


def require_key(key: Path) -> None:
    """Checks that a public key can be used, before a service starts.

    Args:
        key: a PEM file with the public key.

    Raises:
        InputError: the key cannot be read.
        MissingExtraError: the library `model_signing` is not installed.
    """
    _make_verifier(key)


def _make_verifier(key: Path) -> Any:
    library = _import_library()
    try:
        return library.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:
        raise _unusable_key("public", key, error) from error


def _import_library() -> Any:
    try:
        import model_signing
    except ModuleNotFoundError as error:
        raise missing_extra_error("a signature", error.name, "sign") from error
    return model_signing


def _hashing_config(artifact: Artifact) -> Any:
    """Returns a configuration that hashes all files except the signature and the one that BentoML's store adds."""
    ignored = [SIGNATURE, *([STORE_RECORD] if artifact.file(STORE_RECORD).is_file() else [])]
    return _import_library().hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _refuse_compiled_code(artifact: Artifact) -> None:
    """Raises ArtifactError if the artifact has a directory of compiled Python code."""
    folder = next(artifact.path.rglob(PYCACHE), None)
    if folder is not None:
        raise ArtifactError(
            f"{folder} holds compiled code, which is not signed and would run in place of its source. Delete it;"
            " with PYTHONDONTWRITEBYTECODE=1 Python does not write it again."
        )


def _unusable_key(kind: str, key: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
    return InputError(
        f"the {kind} key {key} cannot be used ({reason}). It must be a PEM file with the {kind} key of an elliptic"
        " curve: P-256, P-384 or P-521."
    )


def _copy_signature_to_store(artifact: Artifact) -> None:
    """Copies the signature to the copy of the package in BentoML's model store, if there is one."""
    import bentoml  # slow to import

    with suppress(bentoml.exceptions.BentoMLException):  # it is not in the store
        shutil.copy(artifact.file(SIGNATURE), bentoml.models.get(artifact.tag).path)
