"""What must be there before a service starts: said by the command line, and again where BentoML starts it."""

import ipaddress
import socket

from deploykit.errors import BusyError, InputError
from deploykit.serving.access.jwt import require_provider
from deploykit.serving.access.rate_limits import require_store
from deploykit.serving.privacy.person_names import require_model
from deploykit.serving.privacy.records import require_folder
from deploykit.serving.settings import Settings, require_keys, require_signer

HOST = "127.0.0.1"


def require(settings: Settings) -> None:
    """Makes sure that a process would find what its settings name; what is only away for now may come back.

    Raises:
        InputError: a file is missing or damaged, or an address makes no sense.
        MissingExtraError: a library that a setting asks for is not installed.
        StorageError: records cannot be written.
    """
    require_keys(settings)
    require_signer(settings)
    require_folder(settings)
    require_model(settings)
    require_provider(settings.jwt)
    require_store(settings.redis)


def ip_address(host: str) -> str:
    """Returns an IP address, because BentoML takes no names."""
    try:
        return str(ipaddress.ip_address(HOST if host == "localhost" else host))
    except ValueError:
        raise InputError(
            f"--host must be an IP address, got {host!r}. Use {HOST} for this machine only, or 0.0.0.0 for everybody."
        ) from None


def require_free(host: str, port: int) -> None:
    """Refuses a port that cannot be listened on.

    Raises:
        BusyError: says what the system says.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BusyError(
                f"cannot listen on {host}:{port}: {error.strerror}."
                " Stop what listens there, or choose another port with --port."
            ) from error
