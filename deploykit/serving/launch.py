"""Starts a service process: `bentoml serve` with the options that a service behind a load balancer needs.

Mistakes are reported before the process starts, because people see them there sooner than in a supervisor's log. Each
port gets a BentoML home (`BENTOML_HOME`) of its own: two servers with the same one would delete each other's metrics.
"""

import atexit
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deploykit import no_telemetry
from deploykit.artifact import signing
from deploykit.errors import ArtifactError, DeploykitError, InputError, storage_errors
from deploykit.serving.preflight import LOCALHOST, ip_address, require_free, require_startable
from deploykit.serving.settings import (
    AUTH_VARIABLE,
    DRAIN_VARIABLE,
    KEYS_VARIABLE,
    PACKAGE_VARIABLE,
    drain_file_path,
    load_settings,
    with_absolute_paths,
)
from deploykit.serving.telemetry.logs import NEVER_READY

DEFAULT_PORT = 3000
FREE_PORT_RANGE = range(20_000, 32_000)  # below those that Linux assigns itself, 32,768 and above
SHUTDOWN_TIMEOUT_S = 25  # for requests in flight, once the process is told to stop
READY_TIMEOUT_S = 60.0  # from the start of the process until it is ready
ERROR_LOG_LINES = 20  # so many last lines of the log are in an error message
DIRECT_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would not reach this machine


@dataclass(frozen=True)
class Launch:
    """How to start a service process: its command, its whole environment, and the URL that it will have."""

    argv: tuple[str, ...]
    env: dict[str, str]
    url: str


def plan(
    package: Path,
    *,
    host: str = LOCALHOST,
    port: int = DEFAULT_PORT,
    keys: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Launch:
    """Checks a package, its keys and its port; returns how to start the service.

    Args:
        package: its directory.
        host: the address to listen on; the default is reachable from this machine only.
        port: to listen on.
        keys: the key file; default: as the environment says.
        environ: the environment of the process; some variables are added.

    Raises:
        ArtifactError: the directory is no package, or is not signed as the environment requires.
        InputError: there is no key, or a setting is not valid.
        BusyError: another process listens on the port.

    Example:
        >>> launch = plan(Path("runs/movies/package"))  # doctest: +SKIP
        >>> os.execve(launch.argv[0], launch.argv, launch.env)  # doctest: +SKIP
    """
    host = ip_address(host)
    changes = {KEYS_VARIABLE: str(keys)} if keys is not None else {}
    env = with_absolute_paths({name: value for name, value in environ.items() if name != PACKAGE_VARIABLE} | changes)
    settings, artifact = load_settings(package, env)
    require_startable(settings)
    if settings.signed_by is not None:  # checked before code of the package runs, which could skip the check
        artifact.verify()
        signing.check(artifact, settings.signed_by)
        env["PYTHONDONTWRITEBYTECODE"] = "1"
    require_free(host, port)
    home = _bentoml_home(env, port)
    with storage_errors(home, "BENTOML_HOME"):
        home.mkdir(parents=True, exist_ok=True)
    env |= {"BENTOML_HOME": str(home), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "True"}
    no_telemetry.switch_off(env)
    options = ("--host", host, "--port", str(port), "--timeout-graceful-shutdown", str(SHUTDOWN_TIMEOUT_S))
    argv = (sys.executable, "-m", "bentoml", "serve", str(settings.package), *options)
    url_host = {"0.0.0.0": LOCALHOST, "::": "::1"}.get(host, host)  # noqa: S104
    return Launch(argv, env, f"http://[{url_host}]:{port}" if ":" in url_host else f"http://{url_host}:{port}")


class Service:
    """A service in a child process. It ends by `stop`, at the end of a `with` block, or with this process.

    Args:
        launch: how to start it.
        log: receives the output of the process; default: a temporary file.

    Attributes:
        url: where it answers.
    """

    def __init__(self, launch: Launch, log: Path | None = None) -> None:
        self.url = launch.url
        self._folder = tempfile.TemporaryDirectory(prefix="deploykit-serve-")
        log = log or Path(self._folder.name) / "serve.log"
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                launch.argv, env=launch.env, cwd=self._folder.name, stdout=stream, stderr=stream, start_new_session=True
            )
        atexit.register(self.stop)
        try:
            wait_ready(launch.url, self._process, log)
        except BaseException:  # Ctrl-C too
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the service after the requests in flight; a second call does nothing."""
        atexit.unregister(self.stop)
        if self._process.returncode is None:
            stop(self._process)
        self._folder.cleanup()


def serve(
    package: Path | str, *, host: str = LOCALHOST, port: int = DEFAULT_PORT, keys: Path | None = None, auth: bool = True
) -> Service:
    """Serves a package in a child process, and returns once it is ready.

    Args:
        package: its directory.
        host: the address to listen on; the default is reachable from this machine only.
        port: to listen on; 0 takes a free one.
        keys: the key file; default: as the environment says.
        auth: False turns access control off.

    Returns:
        The service: `.url`, `.stop()`, and a `with` block that stops it. It ends with this process, too.

    Raises:
        ArtifactError: the directory is no package, does not pass its checks, or is not signed as the environment
            requires.
        InputError: there is no key, or a setting is not valid.
        BusyError: another process listens on the port.
        DeploykitError: the process ended, or was not ready within a minute; the message has the end of its log.

    Example:
        >>> with serve("runs/movies/package", port=0) as service:  # doctest: +SKIP
        ...     print(service.url)
    """
    environ = _environ_with_auth(auth)
    return Service(plan(Path(package), host=host, port=port or free_port(host), keys=keys, environ=environ))


def replace_process(
    package: Path | str, *, host: str = LOCALHOST, port: int = DEFAULT_PORT, keys: Path | None = None, auth: bool = True
) -> None:
    """Replaces this process by the service, so that a supervisor's signals reach it; takes the arguments of `serve`."""
    launch = plan(Path(package), host=host, port=port, keys=keys, environ=_environ_with_auth(auth))
    sys.stdout.flush()
    os.execve(launch.argv[0], launch.argv, launch.env)  # noqa: S606  the command was made here


def _environ_with_auth(auth: bool) -> dict[str, str]:
    """Returns the environment of this process; with access control switched off, if `auth` is False."""
    return {**os.environ, **({} if auth else {AUTH_VARIABLE: "off"})}


@contextlib.contextmanager
def running_service(
    package: Path, keys: Path | None, port: int = 0, environ: Mapping[str, str] = os.environ, log: Path | None = None
) -> Iterator[str]:
    """Runs a service as long as the block lasts, with a BentoML home of its own unless `environ` names one.

    Args:
        package: its directory.
        keys: the key file; None: as the environment says.
        port: to listen on; 0 takes a free one.
        environ: the environment of the process.
        log: receives the output of the process; default: a temporary file.

    Yields:
        The base URL, once the service is ready.

    Raises:
        DeploykitError: as for `serve`.
    """
    with tempfile.TemporaryDirectory() as folder:
        environ = {"BENTOML_HOME": str(Path(folder) / "bentoml"), **environ}
        with Service(plan(package, port=port or free_port(), keys=keys, environ=environ), log) as service:
            yield service.url


def drain(port: int = DEFAULT_PORT, seconds: float = 0.0, environ: Mapping[str, str] = os.environ) -> Path:
    """Tells a service on this machine to drain: it says that it is not ready, but still answers.

    A load balancer then sends new requests elsewhere. Once it has noticed, the process can be ended.

    Args:
        port: of the service.
        seconds: how long to wait for the load balancer to notice: the interval of its checks times its threshold.
        environ: with the same variables as the service has.

    Returns:
        The file that tells the service to drain; the next start deletes it.

    Raises:
        InputError: no service was started there.
        StorageError: the file cannot be written.
    """
    home, bentoml_home = _bentoml_home(environ, port), environ.get("BENTOML_HOME")
    if not bentoml_home or home.is_dir():  # started by `deploykit serve`, not by `bentoml serve`
        bentoml_home = str(home)
    file = drain_file_path({**environ, "BENTOML_HOME": bentoml_home})
    if not file.parent.is_dir():
        raise InputError(
            f"no service was started on port {port} by this user with `deploykit serve`. Name its"
            f" port with --port; one that was started otherwise is found by its BENTOML_HOME or {DRAIN_VARIABLE}."
        )
    with storage_errors(file, DRAIN_VARIABLE):
        file.touch()
    time.sleep(seconds)
    return file


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a service is ready.

    Raises:
        ArtifactError: the package does not pass its checks.
        DeploykitError: the process ended, or was not ready within a minute.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _is_ready(url):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-ERROR_LOG_LINES:])
        if NEVER_READY in tail:
            raise ArtifactError(f"the service will not be ready, its package failed the checks:\n{tail}")
        if process.poll() is not None:
            raise DeploykitError(f"the service ended with exit code {process.returncode}:\n{tail}")
        if time.monotonic() > deadline:
            raise DeploykitError(f"the service was not ready within {READY_TIMEOUT_S:g} s:\n{tail}")
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a service by SIGTERM; by SIGKILL, if it has not ended 10 s after its time for requests in flight."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SHUTDOWN_TIMEOUT_S + 10)
    with contextlib.suppress(ProcessLookupError):  # a worker that outlived its supervisor
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port(host: str = LOCALHOST) -> int:
    """Returns a port on which no process listens.

    Linux does not assign ports of this range itself. Otherwise another process could get the port before the service
    listens on it, for example BentoML for the sockets between its workers.
    """
    for port in random.sample(FREE_PORT_RANGE, len(FREE_PORT_RANGE)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    first, last = FREE_PORT_RANGE[0], FREE_PORT_RANGE[-1]
    raise DeploykitError(f"all ports from {first} to {last} are in use on {host}. Name one with --port.")


def _bentoml_home(environ: Mapping[str, str], port: int) -> Path:
    """Returns the BentoML home of the service that listens on a port."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deploykit"
    return Path(environ.get("BENTOML_HOME") or cache) / f"serve-{port}"


def _is_ready(url: str) -> bool:
    """Asks a service whether it is ready; False also if it does not answer."""
    try:
        with DIRECT_OPENER.open(f"{url}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:  # refused, no answer yet, or an error status
        return False
