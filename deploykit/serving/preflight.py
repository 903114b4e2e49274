"""What must be in place before a service starts. The command line checks it, and BentoML again before it starts one."""

import ipaddress
import logging
import socket

from deploykit.artifact import signing
from deploykit.errors import BusyError, InputError
from deploykit.serving.access.jwt import TokenChecker
from deploykit.serving.access.keys import read_keys
from deploykit.serving.access.rate_limits import RedisWindows
from deploykit.serving.privacy.person_names import require_model
from deploykit.serving.privacy.records import require_folder
from deploykit.serving.settings import AUTH_VARIABLE, Settings

LOCALHOST = "127.0.0.1"

logger = logging.getLogger("deploykit.serving")


def require_startable(settings: Settings) -> None:
    """Checks that all files, folders and libraries that the settings need are in place; asks no other server.

    Raises:
        InputError: a file is missing or damaged, records cannot be written, or an address is not valid.
        MissingExtraError: a library that a setting needs is not installed.
    """
    require_keys(settings)
    if settings.signed_by is not None:
        signing.require_key(settings.signed_by)
    require_folder(settings)
    require_model(settings)
    if settings.jwt is not None:
        TokenChecker(*settings.jwt)  # reads a file, but fetches nothing from a URL
    if settings.redis is not None:
        RedisWindows(settings.redis.get_secret_value())  # opens no connection


def require_keys(settings: Settings) -> None:
    """Raises an `InputError` if access control is on but the key file cannot be read or holds no key."""
    if settings.keys is None:
        logger.warning("access control is off (%s=off): everybody who reaches the port is let in", AUTH_VARIABLE)
        return
    try:
        keys = read_keys(settings.keys)
    except InputError as error:
        raise InputError(
            f"access control is on, and {str(error).rstrip('.')}. To serve without keys, set {AUTH_VARIABLE}=off."
        ) from error
    if not keys:
        raise InputError(
            f"access control is on, and the key file {settings.keys} holds no key."
            f" Make one with: deploykit keys add NAME. To serve without keys, set {AUTH_VARIABLE}=off."
        )


def ip_address(host: str) -> str:
    """Returns a host as an IP address, because BentoML accepts no names; raises an `InputError` if it is none."""
    try:
        return str(ipaddress.ip_address(LOCALHOST if host == "localhost" else host))
    except ValueError:
        raise InputError(
            f"--host must be an IP address, got {host!r}."
            f" Use {LOCALHOST} for this machine only, or 0.0.0.0 for everybody."
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
