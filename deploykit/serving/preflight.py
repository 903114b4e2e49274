"""What must be there before a service starts: checked by the command line, and again when BentoML starts a service."""

import ipaddress
import logging
import socket

from deploykit.artifact import signing
from deploykit.errors import BusyError, InputError
from deploykit.serving.access.jwt import Tokens
from deploykit.serving.access.keys import listing
from deploykit.serving.access.rate_limits import Windows
from deploykit.serving.privacy.person_names import require_model
from deploykit.serving.privacy.records import require_folder
from deploykit.serving.settings import AUTH, Settings

HOST = "127.0.0.1"

logger = logging.getLogger("deploykit.serving")


def require(settings: Settings) -> None:
    """Checks everything that the settings name; a server that is only unreachable now is no reason to refuse.

    Raises:
        InputError: a file is missing or damaged, or an address cannot be one.
        MissingExtraError: a library that a setting needs is not installed.
        StorageError: records cannot be written.
    """
    require_keys(settings)
    if settings.signed_by is not None:
        signing.require_key(settings.signed_by)
    require_folder(settings)
    require_model(settings)
    if settings.jwt is not None:
        Tokens(*settings.jwt)  # reads a file, but fetches nothing from a URL
    if settings.redis is not None:
        Windows(settings.redis.get_secret_value())  # opens no connection


def require_keys(settings: Settings) -> None:
    """Raises an `InputError` if access control is on, and there is no key file that can be read and holds a key."""
    if settings.keys is None:
        logger.warning("access control is off (%s=off): everybody who reaches the port is let in", AUTH)
        return
    try:
        keys = listing(settings.keys)
    except InputError as error:
        raise InputError(
            f"access control is on, and {str(error).rstrip('.')}. To serve without keys, set {AUTH}=off."
        ) from error
    if not keys:
        raise InputError(
            f"access control is on, and the key file {settings.keys} holds no key."
            f" Make one with: deploykit keys add NAME. To serve without keys, set {AUTH}=off."
        )


def ip_address(host: str) -> str:
    """Returns an IP address, because BentoML accepts no host names."""
    try:
        return str(ipaddress.ip_address(HOST if host == "localhost" else host))
    except ValueError:
        raise InputError(
            f"--host must be an IP address, got {host!r}. Use {HOST} for this machine only, or 0.0.0.0 for everybody."
        ) from None


def require_free(host: str, port: int) -> None:
    """Raises a `BusyError`, with the system's reason, if a port cannot be used."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BusyError(
                f"cannot listen on {host}:{port}: {error.strerror}."
                " Stop what listens there, or choose another port with --port."
            ) from error
