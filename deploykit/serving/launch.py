"""Starts a service process: `bentoml serve` with the options that a service behind a load balancer needs.

Mistakes are reported before the process starts, because a supervisor's log is a poor place for them. Each port gets its
own BentoML home: two servers in one would wipe each other's metrics.
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
from deploykit.serving.preflight import HOST, ip_address, require, require_free
from deploykit.serving.settings import AUTH, DRAIN, KEYS, PACKAGE, absolute, drain_file, load
from deploykit.serving.telemetry.logs import NEVER_READY

PORT = 3000
PORTS = range(20_000, 32_000)  # of `free_port`; Linux gives 32,768 and above to whatever names no port
SHUTDOWN_S = 25  # for requests in flight, once the process is told to stop
READY_S = 60.0
LOG_LINES = 20  # of the end of a log in an error message
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches this machine


@dataclass(frozen=True)
class Launch:
    """A process that is ready to start: its command, its whole environment and its future url."""

    argv: tuple[str, ...]
    env: dict[str, str]
    url: str


def plan(
    package: Path,
    *,
    host: str = HOST,
    port: int = PORT,
    keys: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Launch:
    """Checks a package, its keys and its port, and returns how to start the service.

    Args:
        package: its directory.
        host: the address to listen on; the default is reachable from this machine only.
        port: to listen on.
        keys: the key file; default: as the environment says.
        environ: the environment to start from.

    Raises:
        ArtifactError: the directory is no package, or is not signed as the environment requires.
        InputError: there is no key, or a setting is not valid.
        BusyError: another process listens on the port.

    Example:
        >>> launch = plan(Path("runs/movies/package"))  # doctest: +SKIP
        >>> os.execve(launch.argv[0], launch.argv, launch.env)  # doctest: +SKIP
    """
    host = ip_address(host)
    changes = {KEYS: str(keys)} if keys is not None else {}
    env = absolute({name: value for name, value in environ.items() if name != PACKAGE} | changes)
    settings, artifact = load(package, env)
    require(settings)
    if settings.signed_by is not None:  # before any of its code runs, which could skip the check
        artifact.verify()
        signing.check(artifact, settings.signed_by)
        env["PYTHONDONTWRITEBYTECODE"] = "1"
    require_free(host, port)
    home = _home(env, port)
    with storage_errors(home, "BENTOML_HOME"):
        home.mkdir(parents=True, exist_ok=True)
    env |= {"BENTOML_HOME": str(home), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "True"}
    no_telemetry.switch_off(env)
    options = ("--host", host, "--port", str(port), "--timeout-graceful-shutdown", str(SHUTDOWN_S))
    argv = (sys.executable, "-m", "bentoml", "serve", str(settings.package), *options)
    reachable = {"0.0.0.0": HOST, "::": "::1"}.get(host, host)  # noqa: S104
    return Launch(argv, env, f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}")


class Service:
    """A service in a child process. It ends with `stop`, at the end of a `with` block, or with this process.

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
        """Ends the service once the requests in flight have their answers; a second call does nothing."""
        atexit.unregister(self.stop)
        if self._process.returncode is None:
            stop(self._process)
        self._folder.cleanup()


def serve(
    package: Path | str, *, host: str = HOST, port: int = PORT, keys: Path | None = None, auth: bool = True
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
        DeploykitError: the process ended, or was not ready within a minute; with the end of its log.

    Example:
        >>> with serve("runs/movies/package", port=0) as service:  # doctest: +SKIP
        ...     print(service.url)
    """
    return Service(plan(Path(package), host=host, port=port or free_port(host), keys=keys, environ=_environ(auth)))


def become(
    package: Path | str, *, host: str = HOST, port: int = PORT, keys: Path | None = None, auth: bool = True
) -> None:
    """Replaces this process by the service, so that a supervisor's signals reach it; arguments as for `serve`."""
    launch = plan(Path(package), host=host, port=port, keys=keys, environ=_environ(auth))
    sys.stdout.flush()
    os.execve(launch.argv[0], launch.argv, launch.env)  # noqa: S606  the command was made here


def _environ(auth: bool) -> dict[str, str]:
    return {**os.environ, **({} if auth else {AUTH: "off"})}


@contextlib.contextmanager
def running(
    package: Path, keys: Path | None, port: int = 0, environ: Mapping[str, str] = os.environ, log: Path | None = None
) -> Iterator[str]:
    """Runs a service as long as the block lasts, with its own BentoML home unless `environ` names one.

    Args:
        package: its directory.
        keys: the key file; None: as the environment says.
        port: to listen on; 0 takes a free one.
        environ: the environment to start from.
        log: receives the output of the process; default: a temporary file.

    Yields:
        The base url, once the service is ready.

    Raises:
        DeploykitError: as for `serve`.
    """
    with tempfile.TemporaryDirectory() as folder:
        environ = {"BENTOML_HOME": str(Path(folder) / "bentoml"), **environ}
        with Service(plan(package, port=port or free_port(), keys=keys, environ=environ), log) as service:
            yield service.url


def drain(port: int = PORT, seconds: float = 0.0, environ: Mapping[str, str] = os.environ) -> Path:
    """Tells a service on this machine to drain: it says that it is not ready, but still answers.

    A load balancer then sends new requests elsewhere. Once it has noticed, the process can be ended.

    Args:
        port: of the service.
        seconds: to wait until the load balancer has noticed: its interval times its threshold.
        environ: the environment, as the service has it.

    Returns:
        The file that tells the service to drain; the next start deletes it.

    Raises:
        InputError: no service was started there.
        StorageError: the file cannot be written.
    """
    home, bentoml_home = _home(environ, port), environ.get("BENTOML_HOME")
    if not bentoml_home or home.is_dir():
        bentoml_home = str(home)
    file = drain_file({**environ, "BENTOML_HOME": bentoml_home})
    if not file.parent.is_dir():
        raise InputError(
            f"no service was started on port {port} by this user with `deploykit serve`. Name its"
            f" port with --port; one that was started otherwise is found by its BENTOML_HOME or {DRAIN}."
        )
    with storage_errors(file, DRAIN):
        file.touch()
    time.sleep(seconds)
    return file


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a service is ready.

    Raises:
        ArtifactError: the package does not pass its checks.
        DeploykitError: the process ended, or was not ready within a minute.
    """
    deadline = time.monotonic() + READY_S
    while not _is_ready(url):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        if NEVER_READY in tail:
            raise ArtifactError(f"the service will not be ready, its package failed the checks:\n{tail}")
        if process.poll() is not None:
            raise DeploykitError(f"the service ended with exit code {process.returncode}:\n{tail}")
        if time.monotonic() > deadline:
            raise DeploykitError(f"the service was not ready within {READY_S:g} s:\n{tail}")
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a service: by SIGTERM, and by SIGKILL if it has not ended after its time for shutdown."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SHUTDOWN_S + 10)
    with contextlib.suppress(ProcessLookupError):  # a worker that outlived its supervisor
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port(host: str = HOST) -> int:
    """Returns a port on which no process listens.

    It is below those that Linux gives to connections and to listeners that name none. Otherwise another process could
    get it before the service listens, for example BentoML's for the sockets between its workers.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    raise DeploykitError(f"all ports from {PORTS[0]} to {PORTS[-1]} are in use on {host}. Name one with --port.")


def _home(environ: Mapping[str, str], port: int) -> Path:
    """Returns the BentoML home of a port."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deploykit"
    return Path(environ.get("BENTOML_HOME") or cache) / f"serve-{port}"


def _is_ready(url: str) -> bool:
    try:
        with DIRECT.open(f"{url}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:  # refused, no answer yet, or an error status
        return False
