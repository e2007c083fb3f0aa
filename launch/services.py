"""The four services as processes: started, waited for, watched, stopped."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import urllib3

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
READY_SECONDS = 60.0
STOP_SECONDS = 15.0
LOG_LINES = 15


@dataclass(frozen=True)
class Service:
    """One service: its name, which is its folder's too, its default port, and the server's extra arguments.

    `depth` says how many others it needs, one behind the other, to finish what it is at: who asks must stop
    before those who are asked.
    """

    name: str
    port: int
    depth: int = 0
    arguments: tuple[str, ...] = ()

    @property
    def port_variable(self) -> str:
        return f"{self.name.upper()}_PORT"


# In the order in which they are started: each needs those above it.
SERVICES = (
    Service("model_a", 8001),
    Service("model_b", 8002),
    Service("router", 8000, depth=1),
    # One process: it keeps the simulation that it runs in memory, and lets the router mend what that broke.
    Service("dashboard", 8050, depth=2, arguments=("--workers", "1")),
)


class LaunchError(Exception):
    """The services cannot be started; the message says what to do."""


def ports(environment: Mapping[str, str]) -> dict[str, int]:
    """The port of each service by its name: MODEL_A_PORT, … where they are set, else the defaults.

    Raises:
        LaunchError: a variable holds no port, two services have the same, or one is taken by another process.
    """
    chosen: dict[str, int] = {}
    for service in SERVICES:
        text = environment.get(service.port_variable) or str(service.port)
        if not text.isdecimal() or not 0 < int(text) < 2**16:
            raise LaunchError(f"{service.port_variable}={text} is no port: choose one from 1 to 65535")
        port = int(text)
        choose = f"choose another: make run {service.port_variable}={port + 100}"
        if port in chosen.values():
            raise LaunchError(f"port {port} is wanted by two services, one of them {service.name}; {choose}")
        if _taken(port):
            raise LaunchError(f"port {port}, wanted by {service.name}, is taken by another program; {choose}")
        chosen[service.name] = port
    return chosen


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        # As the server binds: a port that only waits out its last connections is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


class Services:
    """The running house. Everything that it writes goes under one folder."""

    def __init__(self, ports: Mapping[str, int], var: Path, environment: Mapping[str, str]) -> None:
        """Prepare the services without starting them.

        Args:
            ports: by service name.
            var: the folder for the logs, the ledger and the models, where the environment names no others.
            environment: the variables that the services start with.
        """
        self.urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
        self._ports = ports
        self._var = var
        self._logs = var / "log"
        self._environment = {
            "RUNOFF_BOARD": str(var / "models"),
            "RUNOFF_LEDGER": f"sqlite:///{var / 'ledger.sqlite'}",
            "RUNOFF_LOADS": str(var / "load"),
            # From the dashboard one may offer a load to what answers predictions, and to nothing else.
            "RUNOFF_LOAD_TARGETS": " ".join(
                f"{name}={self.urls[name]}" for name in ("router", "model_a", "model_b")
            ),
            **environment,
            **{f"{name.upper()}_URL": url for name, url in self.urls.items()},
        }
        if environment.get("RUNOFF_OPERATOR_KEY"):
            # The router asks for keys then: the dashboard has one of its own, which may read.
            self._environment.setdefault("RUNOFF_DASHBOARD_KEY", secrets.token_urlsafe(32))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._http = urllib3.PoolManager(retries=False, timeout=2.0)

    def start(self, on_ready: Callable[[str], None] = lambda _: None) -> None:
        """Start all services, and return when each is ready.

        Args:
            on_ready: called with the name of each service when it is.

        Raises:
            LaunchError: one stopped or was not ready in time; named, with the last lines of its log. None
                is left running.
        """
        try:
            for service in SERVICES:
                self.start_one(service.name)
            for service in SERVICES:
                self.wait_ready(service.name)
                on_ready(service.name)
        except BaseException:
            self.stop()
            raise

    def start_one(self, name: str) -> None:
        """Start one service without waiting for it."""
        service = next(each for each in SERVICES if each.name == name)
        self._logs.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "runoff.server", f"{name}.app:app"),
            *("--host", HOST, "--port", str(self._ports[name]), *service.arguments),
        ]
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(  # noqa: S603 (our own command)
                command,
                cwd=ROOT,
                env={"PROMETHEUS_MULTIPROC_DIR": str(self._var / "metrics" / name), **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches the launcher alone, which then stops the services in order.
                start_new_session=True,
            )

    def wait_ready(self, name: str) -> None:
        """Wait until a service's `/readyz` is green.

        Raises:
            LaunchError: its process ended, or it was not ready in READY_SECONDS.
        """
        deadline = time.monotonic() + READY_SECONDS
        reason = "no answer yet"
        while time.monotonic() < deadline:
            if (code := self._processes[name].poll()) is not None:
                raise LaunchError(f"{name} stopped with exit code {code}.\n{self.log_tail(name)}")
            try:
                response = self._http.request("GET", f"{self.urls[name]}/readyz")
            except urllib3.exceptions.HTTPError:
                pass
            else:
                if response.status == 200:  # noqa: PLR2004
                    return
                reason = response.data.decode(errors="replace").strip()
            time.sleep(0.05)
        raise LaunchError(f"{name} is not ready after {READY_SECONDS:g} s: {reason}\n{self.log_tail(name)}")

    def dead(self) -> Iterator[str]:
        """The services whose process has ended."""
        return (name for name, process in self._processes.items() if process.poll() is not None)

    def pid(self, name: str) -> int:
        """The process of a service, of which its workers are the children."""
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """Kill a service, master and workers at once, as a crash would."""
        process = self._processes[name]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop_one(self, name: str) -> None:
        """Stop one service, and let it finish what is in flight."""
        process = self._processes.pop(name)
        process.terminate()
        _wait(process)

    def stop(self) -> None:
        """Stop all services, and let each finish what is in flight: those who ask go first."""
        for depth in (2, 1, 0):
            leaving = [
                self._processes.pop(each.name)
                for each in SERVICES
                if each.depth == depth and each.name in self._processes
            ]
            for process in leaving:
                process.terminate()
            for process in leaving:
                _wait(process)

    def log_tail(self, name: str) -> str:
        """The last lines of a service's log, and where the rest is."""
        path = self._log(name)
        lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:] if path.exists() else []
        return "\n".join([f"The end of {path}:", *(f"    {line}" for line in lines)])

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a service that was told to stop; kill it where that does not come."""
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
