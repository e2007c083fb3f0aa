"""The house as tests see it: real processes on free ports, on models trained by the real notebooks."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import urllib3
from flask import Flask
from werkzeug.serving import make_server

from launch.services import SERVICES, Services
from tests import artifacts
from tests.ports import free_port

CI = os.environ.get("CI") == "true"

# The same browser twice: the shell without windows takes a small part of the CPU to start.
CHROMIUMS = (Path("/usr/bin/chromium-headless-shell"), Path("/usr/bin/chromium"))
CHROMIUM = next((each for each in CHROMIUMS if each.exists()), CHROMIUMS[-1])
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
# How long a test waits for what must come: many times what it takes, since machines are busy.
PATIENCE_SECONDS = 120.0
PATIENCE = 1000 * PATIENCE_SECONDS


@dataclass(frozen=True)
class Reply:
    """What a visitor got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def prediction(self) -> float:
        return float(self.json["prediction"])

    @property
    def errors(self) -> list[dict[str, Any]]:
        return list(self.json.get("errors", []))


# A service closes connections that nobody has used for two seconds, maybe just when one asks again.
IDLE_SECONDS = 1.0


class Visitor:
    """Somebody who talks to a service over HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = urllib3.PoolManager(retries=False, timeout=30.0, maxsize=16)
        self._asked = time.monotonic()

    def asks(self, record: Any, **headers: str) -> Reply:
        """POST a record, or what the test says instead, to /predict."""
        return self.sends(json.dumps(record).encode(), **headers)

    def sends(
        self, body: bytes | Iterable[bytes], path: str = "/predict", method: str = "POST", **headers: str
    ) -> Reply:
        """Send bytes as they are; header names are written with underscores."""
        sent = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return self._request(method, path, body=body, headers=sent)

    def gets(self, path: str, method: str = "GET") -> Reply:
        return self._request(method, path)

    def fetches(self, path: str, accept: str) -> Reply:
        """GET what is at a path in a form."""
        return self._request("GET", path, headers={"Accept": accept})

    def _request(self, method: str, path: str, **sent: Any) -> Reply:
        if time.monotonic() - self._asked > IDLE_SECONDS:
            self._http.clear()
        response = self._http.request(method, self.url + path, **sent)
        self._asked = time.monotonic()
        artifacts.said(method, self.url + path, sent, response.status, response.data)
        return Reply(response.status, response.headers, response.data)


@dataclass
class House:
    """The four services, running."""

    services: Services
    var: Path
    router: Visitor = field(init=False)
    model_a: Visitor = field(init=False)
    model_b: Visitor = field(init=False)
    dashboard: Visitor = field(init=False)

    def __post_init__(self) -> None:
        self.router = Visitor(self.router_url)
        self.model_a = Visitor(self.services.urls["model_a"])
        self.model_b = Visitor(self.services.urls["model_b"])
        self.dashboard = Visitor(self.dashboard_url)

    @property
    def router_url(self) -> str:
        return self.services.urls["router"]

    @property
    def dashboard_url(self) -> str:
        return self.services.urls["dashboard"]

    def stats(self, tag: str | None = None) -> dict[str, Any]:
        """What `/stats` says, its variants by name."""
        told: dict[str, Any] = self.router.gets("/v1/stats" + (f"?tag={tag}" if tag else "")).json
        return {**told, "variants": {each["name"]: each for each in told["variants"]}}

    def record(self, since: int = 0) -> list[dict[str, Any]]:
        """The whole record after a cursor, paged through as a client would."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.router.gets(f"/v1/predictions?since={since}&limit=1000").json
            found += page["predictions"]
            since = page["next"]
            if not page["more"]:
                return found

    def on_disk(self) -> list[sqlite3.Row]:
        """The ledger's rows as they lie in the database, asking no service."""
        with sqlite3.connect(self.var / "ledger.sqlite") as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute("SELECT * FROM predictions ORDER BY cursor").fetchall()


def free_ports() -> dict[str, int]:
    """A free port for each service."""
    return {service.name: free_port() for service in SERVICES}


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds; `what` says what never came, where it does not."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def answers(house: Services, name: str) -> bool:
    """Whether a service answers at all, ready or not."""
    assert name not in house.dead(), house.log_tail(name)
    try:
        reply = urllib3.request("GET", f"{house.urls[name]}/livez", retries=False, timeout=2.0)
    except urllib3.exceptions.HTTPError:
        return False
    return reply.status == 200


@contextmanager
def running(var: Path, board: Path, *services: str, **environment: str) -> Iterator[House]:
    """The services, or the named ones, for the length of a `with`; with variables of their environment.

    All of them are waited for until ready; named ones only until they answer at all.
    """
    with _running(var, board, services, environment, free_ports()) as house:
        yield house


@contextmanager
def _running(
    var: Path, board: Path, services: tuple[str, ...], environment: Mapping[str, str], ports: dict[str, int]
) -> Iterator[House]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RUNOFF_")}
    house = Services(ports, var, {**inherited, "RUNOFF_BOARD": str(board), **environment})
    artifacts.logs.append(var / "log")
    try:
        if services:
            for name in services:
                house.start_one(name)
            for name in services:
                until(partial(answers, house, name), f"{name} answers")
        else:
            house.start()
        yield House(house, var)
    finally:
        house.stop()
        artifacts.ended.append(var / "log")


@contextmanager
def running_without_dashboard(var: Path, board: Path, **environment: str) -> Iterator[House]:
    """The models and the router, all ready: a dashboard takes as long to start as these together."""
    names = ("model_a", "model_b", "router")
    with running(var, board, *names, **environment) as house:
        for name in names:
            house.services.wait_ready(name)
        yield house


@contextmanager
def a_router(var: Path, board: Path, models: House, **environment: str) -> Iterator[House]:
    """A router, ready, before the models of another house."""
    theirs = {name: int(models.services.urls[name].rpartition(":")[2]) for name in ("model_a", "model_b")}
    with _running(var, board, ("router",), environment, free_ports() | theirs) as house:
        house.services.wait_ready("router")
        yield house


def run_in(python: Path, script: str, *arguments: object, given: Any = None) -> Any:
    """Run a script by another environment's interpreter, away from this checkout.

    Args:
        python: the interpreter.
        script: what it runs; what that prints last is the answer, as JSON.
        arguments: its arguments.
        given: what it reads as JSON from its input.
    """
    done = subprocess.run(
        [python, "-W", "ignore", "-c", script, *map(str, arguments)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def served(app: Flask, prefix: str = "") -> Iterator[str]:
    """An app behind a proxy that takes a prefix from each address, and says nothing of it."""

    def proxied(environ: dict[str, Any], start_response: Any) -> Any:
        assert environ["PATH_INFO"].startswith(prefix)
        return app(environ | {"PATH_INFO": environ["PATH_INFO"].removeprefix(prefix)}, start_response)

    server = make_server("127.0.0.1", 0, proxied, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
    finally:
        server.shutdown()
        thread.join()
