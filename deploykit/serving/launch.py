"""Starts a service process: `bentoml serve` with the options that a service behind a load balancer needs.

Everything that can be wrong is said before the process starts, because a supervisor's log is a poor place
for it. Each port gets its own BentoML home: two servers in one would wipe each other's metrics.
"""

import atexit
import contextlib
import os
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
DRAIN_S = 25  # how long requests in flight may take once the process is told to stop
READY_S = 60.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches this machine


@dataclass(frozen=True)
class Launch:
    """A process that is ready to start: its command, its whole environment and where it will answer."""

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
    """Checks a package, its keys and its port, and says how to start the service.

    Args:
        package: its directory.
        host: the address to listen on; the default is reachable from this machine only.
        port: to listen on.
        keys: the key file; default: what the environment says.
        environ: the environment to start from.

    Raises:
        ArtifactError: the directory is no package, or is not signed by whom the environment names.
        InputError: there is no key, or a setting makes no sense.
        BusyError: somebody listens on the port.

    Example:
        >>> launch = plan(Path("runs/movies/package"))  # doctest: +SKIP
        >>> os.execve(launch.argv[0], launch.argv, launch.env)  # doctest: +SKIP
    """
    host = ip_address(host)
    named = {KEYS: str(keys)} if keys is not None else {}
    env = absolute({name: value for name, value in environ.items() if name != PACKAGE} | named)
    settings, artifact = load(package, env)
    require(settings)
    if settings.signed_by is not None:  # before any of its code runs, which could skip the check
        artifact.verify()
        signing.check(artifact, settings.signed_by)
        env["PYTHONDONTWRITEBYTECODE"] = "1"
    require_free(host, port)
    env["BENTOML_HOME"] = str(home := _home(env, port))
    with storage_errors(home, "BENTOML_HOME"):
        home.mkdir(parents=True, exist_ok=True)
    env["PYTHONUNBUFFERED"] = "1"
    env["HF_HUB_OFFLINE"] = "True"
    no_telemetry.switch_off(env)
    options = {"--host": host, "--port": port, "--timeout-graceful-shutdown": DRAIN_S}
    flags = [str(part) for option in options.items() for part in option]
    argv = (sys.executable, "-m", "bentoml", "serve", str(settings.package), *flags)
    shown = {"0.0.0.0": HOST, "::": "::1"}.get(host, host)  # noqa: S104
    return Launch(argv, env, f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}")


class Service:
    """A service in a process of its own. It ends with `stop`, at the end of a `with` block, or with this process.

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
        """Ends the service once the requests in flight have their answers; again, it does nothing."""
        atexit.unregister(self.stop)
        if self._process.returncode is None:
            stop(self._process)
        self._folder.cleanup()


def serve(
    package: Path | str, *, host: str = HOST, port: int = PORT, keys: Path | None = None, auth: bool = True
) -> Service:
    """Serves a package in a process of its own, and returns once it is ready.

    Args:
        package: its directory.
        host: the address to listen on; the default is reachable from this machine only.
        port: to listen on; 0 takes a free one.
        keys: the key file; default: what the environment says.
        auth: False lets everybody in.

    Returns:
        The service: `.url`, `.stop()`, and a `with` block that stops it. It ends with this process, too.

    Raises:
        ArtifactError: the directory is no package, does not pass its checks, or is not signed by whom the environment
            names.
        InputError: there is no key, or a setting makes no sense.
        BusyError: somebody listens on the port.
        DeploykitError: the process ended, or was not ready within a minute; with the end of its log.

    Example:
        >>> with serve("runs/movies/package", port=0) as service:  # doctest: +SKIP
        ...     print(service.url)
    """
    return Service(plan(Path(package), host=host, port=port or free_port(host), keys=keys, environ=_environ(auth)))


def become(
    package: Path | str, *, host: str = HOST, port: int = PORT, keys: Path | None = None, auth: bool = True
) -> None:
    """Replaces this process by the service, so that a supervisor's signals reach it; for the command line.

    Takes and refuses what `serve` does.
    """
    launch = plan(Path(package), host=host, port=port, keys=keys, environ=_environ(auth))
    sys.stdout.flush()
    os.execve(launch.argv[0], launch.argv, launch.env)  # noqa: S606  the command was made here


def _environ(auth: bool) -> dict[str, str]:
    return {**os.environ, **({} if auth else {AUTH: "off"})}


@contextlib.contextmanager
def running(
    package: Path, keys: Path | None, port: int = 0, environ: Mapping[str, str] = os.environ, log: Path | None = None
) -> Iterator[str]:
    """Runs a service for as long as the block lasts, with a BentoML home of its own unless `environ` names one.

    Args:
        package: its directory.
        keys: the key file; None for what the environment says.
        port: to listen on; 0 takes a free one.
        environ: the environment to start from.
        log: gets what the process prints; default: a temporary file.

    Yields:
        The base url, once the service is ready.

    Raises:
        ArtifactError: the package does not pass its checks.
        DeploykitError: the process ended, or was not ready within a minute; with the end of its log.
    """
    with tempfile.TemporaryDirectory() as folder:
        environ = {"BENTOML_HOME": str(Path(folder) / "bentoml"), **environ}
        with Service(plan(package, port=port or free_port(), keys=keys, environ=environ), log) as service:
            yield service.url


def drain(port: int = PORT, seconds: float = 0.0, environ: Mapping[str, str] = os.environ) -> Path:
    """Tells a service on this machine to let go of its traffic: it says that it is not ready, and answers on.

    A load balancer then sends its traffic elsewhere; the process can be ended once it has noticed.

    Args:
        port: that it listens on.
        seconds: to wait until the load balancer has noticed: its interval times its threshold.
        environ: the environment, as the service has it.

    Returns:
        The file that says so; the next start takes it away.

    Raises:
        InputError: no service was started there.
        StorageError: the file cannot be written.
    """
    home, given = _home(environ, port), environ.get("BENTOML_HOME")
    file = drain_file({**environ, "BENTOML_HOME": given if given and not home.is_dir() else str(home)})
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
        DeploykitError: the process ended, or time is up.
    """
    end = time.monotonic() + READY_S
    while not _answers(f"{url}/readyz"):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        if NEVER_READY in tail:
            raise ArtifactError(f"the service will not be ready, its package failed the checks:\n{tail}")
        if process.poll() is not None:
            raise DeploykitError(f"the service ended with exit code {process.returncode}:\n{tail}")
        if time.monotonic() > end:
            raise DeploykitError(f"the service was not ready within {READY_S:g} s:\n{tail}")
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a service that `running` started: politely, and by force when it does not listen."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(DRAIN_S + 10)
    with contextlib.suppress(ProcessLookupError):  # a worker that outlived its supervisor
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port(host: str = HOST) -> int:
    """Finds a port that nobody listens on."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def _home(environ: Mapping[str, str], port: int) -> Path:
    """Returns a directory of its own for each service: two in one would count, and drain, as one."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deploykit"
    return Path(environ.get("BENTOML_HOME") or cache) / f"serve-{port}"


def _answers(url: str) -> bool:
    try:
        with DIRECT.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:  # refused, no answer yet, or an error status
        return False
