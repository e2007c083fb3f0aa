"""What it costs a router to ask a model: our client beside others, `python -m benchmarks.upstreams`.

All ask the same stand-in for a model, which is a process of its own and says the same to everybody. What is
told is the CPU of the asking process for one request, user and system time; those that are not installed are
left out.
"""

from __future__ import annotations

import http.client
import io
import json
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from router.upstream import Limits, Upstream

RECORD = {f"COLUMN_{number}": 1000 * number for number in range(23)}
BODY = json.dumps(RECORD).encode()
HEADERS = {"Content-Type": "application/json", "Accept": "*/*", "X-Request-ID": "0123456789abcdef" * 2}
SECONDS = 2.0
THREADS = 8

SAID = b'{"prediction":0.7312345678901234,"model":"model-a","version":"20261123T164052Z-8fc67"}'
RESPONSE = b"\r\n".join(
    [
        b"HTTP/1.1 200 OK",
        b"content-type: application/json",
        b"content-length: %d" % len(SAID),
        b"x-model-name: model-a",
        b"x-model-version: 20261123T164052Z-8fc67",
        b"x-model-digest: sha256:" + 64 * b"a",
        b"date: Mon, 23 Nov 2026 16:40:52 GMT",
        b"",
        SAID,
    ]
)

# Makes a function that asks once, and returns the body of the answer.
Client = Callable[[str], Callable[[], bytes]]


def _ours(url: str) -> Callable[[], bytes]:
    model, limits = Upstream("A", url), Limits()
    return lambda: model.ask("/predict", BODY, HEADERS, limits).body


def _http_client(url: str) -> Callable[[], bytes]:
    mine = threading.local()

    def ask() -> bytes:
        if not hasattr(mine, "connection"):
            mine.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=SECONDS)
        mine.connection.request("POST", "/predict", BODY, HEADERS)
        content: bytes = mine.connection.getresponse().read()
        return content

    return ask


def _urllib3(url: str) -> Callable[[], bytes]:
    urllib3: Any = import_module("urllib3")
    pool = urllib3.PoolManager(retries=False, maxsize=THREADS, timeout=SECONDS)
    return lambda: pool.request("POST", f"{url}/predict", body=BODY, headers=HEADERS).data


def _pycurl(url: str) -> Callable[[], bytes]:
    pycurl: Any = import_module("pycurl")
    mine = threading.local()

    def ask() -> bytes:
        if not hasattr(mine, "curl"):
            mine.curl = curl = pycurl.Curl()
            curl.setopt(pycurl.URL, f"{url}/predict")
            curl.setopt(pycurl.TIMEOUT_MS, int(1000 * SECONDS))
            curl.setopt(pycurl.NOSIGNAL, 1)
        content, head = io.BytesIO(), list[bytes]()
        mine.curl.setopt(pycurl.POSTFIELDS, BODY)
        mine.curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in HEADERS.items()])
        mine.curl.setopt(pycurl.WRITEDATA, content)
        mine.curl.setopt(pycurl.HEADERFUNCTION, head.append)
        mine.curl.perform()
        return content.getvalue()

    return ask


def _pyreqwest(url: str) -> Callable[[], bytes]:
    client: Any = import_module("pyreqwest.client").SyncClientBuilder().build()
    return lambda: bytes(
        client.post(f"{url}/predict").headers(HEADERS).body_bytes(BODY).build().send().bytes()
    )


def _session(library: str, session: str) -> Client:
    def make(url: str) -> Callable[[], bytes]:
        client: Any = getattr(import_module(library), session)()
        sent = "content" if library == "httpx" else "data"
        return lambda: client.post(f"{url}/predict", headers=HEADERS, **{sent: BODY}).content

    return make


CLIENTS: dict[str, Client] = {
    "router.upstream (plain sockets, llhttp)": _ours,
    "http.client": _http_client,
    "pycurl": _pycurl,
    "pyreqwest": _pyreqwest,
    "urllib3": _urllib3,
    "requests": _session("requests", "Session"),
    "niquests": _session("niquests", "Session"),
    "httpx": _session("httpx", "Client"),
}


def _serve(listener: socket.socket) -> None:
    """Say the same to every request, on any number of connections, for ever."""

    def answer(made: socket.socket) -> None:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        while piece := made.recv(65_536):
            received += piece
            if received.endswith(BODY):
                made.sendall(RESPONSE)
                received = b""

    while True:
        made, _ = listener.accept()
        threading.Thread(target=answer, args=(made,), daemon=True).start()


def _microseconds(ask: Callable[[], bytes], asks: int, threads: int) -> float:
    """CPU of this process for one request, in µs."""

    def several(_thread: int) -> None:
        for _ in range(asks // threads):
            ask()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(several, range(threads)))  # every thread has its connection
        began = time.process_time()
        list(pool.map(several, range(threads)))
    return (time.process_time() - began) / (asks // threads * threads) * 1e6


@click.command()
@click.option("--asks", default=4_000, show_default=True, help="Requests a client sends in each round.")
@click.option("--rounds", default=5, show_default=True, help="Rounds, of which the median is told.")
def main(asks: int, rounds: int) -> None:
    """Measure all clients in turn, in one run."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        service = multiprocessing.get_context("fork").Process(target=_serve, args=(listener,), daemon=True)
        service.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        clients: dict[str, Callable[[], bytes]] = {}
        for name, make in CLIENTS.items():
            with suppress(ImportError):
                clients[name] = make(url)
        figures: dict[tuple[str, int], list[float]] = {}
        for _ in range(rounds):
            for name, ask in clients.items():
                assert ask() == SAID, name
                for threads in (1, THREADS):
                    figures.setdefault((name, threads), []).append(_microseconds(ask, asks, threads))
        service.terminate()
    click.echo(f"| CPU µs per request | one thread | {THREADS} threads |\n| --- | --- | --- |")
    for name in clients:
        alone, together = (statistics.median(figures[name, threads]) for threads in (1, THREADS))
        click.echo(f"| {name} | {alone:.0f} | {together:.0f} |")


if __name__ == "__main__":
    main()
