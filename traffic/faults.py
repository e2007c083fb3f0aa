"""A variant that is broken on purpose: a service that stands before a model's own, and spoils its answers.

It spoils what simulated traffic asks, known by the header X-Traffic-Tag that the router passes on, alone.
The router is told to look for the variant there, by a change of the experiment like any other: it stands in
the audit, takes the operator's key where the router has keys, and is taken back at the end. Meanwhile is a
phase of its own, since another service answers, and then the one of before goes on. What a run that was
killed left behind is taken back by the next one, and when a dashboard or the house starts: `mend`.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from runoff.problems import PROBLEM_JSON
from traffic.plan import TAG
from traffic.send import IDLE_SECONDS

Fault = Literal["errors", "slow", "upside-down"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

ERROR_SHARE = 0.5
SLOW_SECONDS = 0.3
HERE = "127.0.0.1"
MAX_BYTES = 64 * 1024**2
TIMEOUT_SECONDS = 30.0
OK = 200
# Somebody else may change the experiment at the same moment.
ATTEMPTS = 5
STALE = 412
# As long as the router takes to follow a change in all of its processes, and somewhat more.
FOLLOWED_SECONDS = 1.0
# Letters that the router takes as a reason, and entries of its audit that are looked through.
MAX_REASON = 500
MAX_ENTRIES = 1000
# Of one connection, not of the message (RFC 9110 section 7.6.1), or said anew for what is passed on.
NOT_PASSED_ON = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"} | {
    "host",
    "content-length",
    "content-encoding",
}


class CannotBreak(Exception):
    """The variant cannot be broken, or not be mended; the message says why, and what is to be done."""


class Break(BaseModel):
    """Which variant is to break, how, and how many seconds after the beginning.

    With "errors" half of its answers are failures (status 500), "slow" ones come 0.3 s late, and
    "upside-down" ones say 1 − p where its model says p. `reason` and `by` go into the audit; with a `version`
    nothing is broken unless that version of the experiment is in force.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str
    fault: Fault = "errors"
    at: Annotated[float, Field(ge=0)] = 0.0
    reason: str | None = None
    by: str | None = None
    version: int | None = None


@asynccontextmanager
async def broken(
    wanted: Break, url: str, session: aiohttp.ClientSession, seed: int
) -> AsyncIterator[Callable[[], None]]:
    """Let a variant of the router at `url` be broken for simulated traffic within this context.

    Args:
        wanted: which one, how and when.
        url: of the router, on this machine: it must reach a service of this process.
        session: whose headers open the router.
        seed: of which answers fail.

    Yields:
        What is to be called when the traffic begins: from then on time counts.

    Raises:
        CannotBreak: the router is elsewhere, has no such variant or another version, or does not let us; or
            when the context ends, it could not be mended.
    """
    if not _is_here(url):
        raise CannotBreak(f"only a variant of a router on this machine can be broken, and {url} is elsewhere")
    document, _ = await _experiment(session, url)
    own = next((each["url"] for each in document["variants"] if each["name"] == wanted.variant), None)
    if own is None:
        names = ", ".join(each["name"] for each in document["variants"])
        raise CannotBreak(f"there is no variant {wanted.variant}: there are {names}")
    since = asyncio.Event()
    runner = web.AppRunner(_spoiling(own, wanted.fault, since, random.Random(f"faults {seed}")))
    await runner.setup()
    try:
        await web.TCPSite(runner, HERE, 0).start()
        address = f"http://{HERE}:{runner.addresses[0][1]}"
        why = {"reason": _why(wanted, own)} | ({"by": wanted.by} if wanted.by else {})
        await _move(session, url, wanted.variant, before=own, after=address, why=why, version=wanted.version)
        loop, timers = asyncio.get_running_loop(), []
        try:
            yield lambda: timers.append(loop.call_later(wanted.at, since.set))
        finally:
            for timer in timers:
                timer.cancel()
            since.clear()
            await asyncio.shield(_mended(session, url, wanted.variant, address, own))
    finally:
        await runner.cleanup()


def mend(url: str, key: str | None = None) -> list[str]:
    """Let variants answer from their own services again that runs left broken which were killed.

    Args:
        url: of the router. Of one that is elsewhere nothing is mended: nothing was broken there.
        key: an operator's, where the router has keys.

    Returns:
        The names of those that were mended, which every process of the router knows by now.

    Raises:
        CannotBreak: the router does not let us.
        aiohttp.ClientError, OSError: it does not answer.
    """

    async def run() -> list[str]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            return await mend_all(session, url)

    return asyncio.run(run())


async def mend_all(session: aiohttp.ClientSession, url: str) -> list[str]:
    """As `mend`, in a session whose headers open the router."""
    if not _is_here(url):
        return []
    mended = []
    document, _ = await _experiment(session, url)
    for each in document["variants"]:
        name, address = each["name"], each["url"]
        # Another run may be at work: its service listens.
        if await _is_left(address) and (own := await _own(session, url, name, address)):
            await _mended(session, url, name, address, own)
            mended.append(name)
    return mended


async def _is_left(address: str) -> bool:
    """Whether an address is one of this machine at which nobody listens."""
    parts = urlsplit(address)
    if parts.hostname != HERE or not parts.port:
        return False
    try:
        _, writer = await asyncio.open_connection(HERE, parts.port)
    except OSError:
        return True
    writer.close()
    return False


async def _own(session: aiohttp.ClientSession, url: str, variant: str, address: str) -> str | None:
    """The own service of a variant that a run let the router look for at an address; None where none did."""
    said = re.compile(
        rf"simulation: {re.escape(variant)} is to break on purpose .*; its own service is (\S+)", re.DOTALL
    )
    async with session.get(f"{url}/v1/audit", params={"last": MAX_ENTRIES}) as response:
        entries = (await _told(response))["entries"]
    for entry in reversed(entries):
        variants = entry["document"]["variants"] if entry["document"] else []
        moved = (variant, address) in [(each["name"], each["url"]) for each in variants]
        if moved and (found := said.fullmatch(entry["reason"])):
            return found[1]
    return None


async def _mended(session: aiohttp.ClientSession, url: str, variant: str, address: str, own: str) -> None:
    """Let the router look for a variant at its own service again, and wait until all of it does."""
    why = {"reason": f"simulation: {variant} is mended, and answers from its own service"}
    await _move(session, url, variant, before=address, after=own, why=why)
    await asyncio.sleep(FOLLOWED_SECONDS)


def _why(wanted: Break, own: str) -> str:
    """What the audit is told, by which `mend` finds the variant's own service."""
    said = f"simulation: {wanted.variant} is to break on purpose ({wanted.fault})"
    rest = f"; its own service is {own}"
    if wanted.reason:
        said += f": {wanted.reason}"
    return said[: MAX_REASON - len(rest)] + rest


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


async def _experiment(session: aiohttp.ClientSession, url: str) -> tuple[dict[str, Any], str]:
    """The experiment's document and its ETag."""
    async with session.get(f"{url}/v1/experiment") as response:
        document = await _told(response)
        if "variants" not in document or "ETag" not in response.headers:
            raise _no_router(response)
        return document, response.headers["ETag"]


async def _move(
    session: aiohttp.ClientSession,
    url: str,
    variant: str,
    *,
    before: str,
    after: str,
    why: dict[str, str],
    version: int | None = None,
) -> None:
    """Let the router look for a variant at another address, if it looks for it at `before`.

    Args:
        session: whose headers open the router.
        url: of the router.
        variant: its name.
        before: where the router looks for it.
        after: where it is to look for it.
        why: the reason, and by whom.
        version: of the experiment that is changed; None for the one in force, whichever it is.

    Raises:
        CannotBreak: another version is in force, or the router does not let us.
    """
    for _ in range(ATTEMPTS):
        document, etag = await _experiment(session, url)
        if version is not None and etag != f'"{version}"':
            raise CannotBreak(
                f'the experiment was changed meanwhile: version {etag} is in force, not "{version}"'
            )
        mine = [each for each in document["variants"] if (each["name"], each["url"]) == (variant, before)]
        if not mine:
            # Somebody decided otherwise meanwhile, and that stays.
            return
        mine[0]["url"] = after
        headers = {"If-Match": etag}
        async with session.put(
            f"{url}/v1/experiment", params=why, json=document, headers=headers
        ) as response:
            if response.status != STALE:
                await _told(response)
                return
    raise CannotBreak(f"others change the experiment all the time; variant {variant} stays at {before}")


async def _told(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        told = await response.json()
    except (aiohttp.ContentTypeError, ValueError):
        told = None
    if not isinstance(told, dict):
        raise _no_router(response)
    if response.status != OK:
        raise CannotBreak(f"the router says: {told.get('detail', response.status)}")
    return told


def _no_router(response: aiohttp.ClientResponse) -> CannotBreak:
    return CannotBreak(f"what answers at {response.url.origin()} is no router")


def _spoiling(own: str, fault: Fault, since: asyncio.Event, rng: random.Random) -> web.Application:
    """A service that answers as the one at `own` does, and spoils simulated traffic once `since` is set."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(keepalive_timeout=IDLE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
    )

    async def answer(request: web.Request) -> web.Response:
        simulated = request.headers.get("X-Traffic-Tag") == TAG
        spoilt = since.is_set() and simulated and request.method == "POST" and request.path == "/predict"
        if spoilt and fault == "errors" and rng.random() < ERROR_SHARE:
            problem = {
                "title": "Broken on purpose",
                "status": 500,
                "detail": "this variant is broken on purpose",
            }
            return web.json_response(problem, status=500, content_type=PROBLEM_JSON)
        if spoilt and fault == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        reply = await _ask(session, own, request)
        if spoilt and fault == "upside-down" and reply.status == OK:
            return _upside_down(reply)
        return reply

    async def close(_: web.Application) -> None:
        await session.close()

    app = web.Application(client_max_size=MAX_BYTES)
    app.router.add_route("*", "/{path:.*}", answer)
    app.on_cleanup.append(close)
    return app


def _upside_down(reply: web.Response) -> web.Response:
    assert isinstance(reply.body, bytes)
    told = json.loads(reply.body)
    told["prediction"] = 1 - told["prediction"]
    headers = {name: value for name, value in reply.headers.items() if name.lower() not in NOT_PASSED_ON}
    return web.Response(status=reply.status, headers=headers, body=json.dumps(told).encode())


async def _ask(session: aiohttp.ClientSession, own: str, request: web.Request) -> web.Response:
    """What a variant's own service answers; 502 where it does not."""
    headers = {name: value for name, value in request.headers.items() if name.lower() not in NOT_PASSED_ON}
    try:
        async with session.request(
            request.method, f"{own}{request.path_qs}", data=await request.read(), headers=headers
        ) as response:
            kept = {n: value for n, value in response.headers.items() if n.lower() not in NOT_PASSED_ON}
            return web.Response(status=response.status, headers=kept, body=await response.read())
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        problem = {"title": "Bad gateway", "status": 502, "detail": f"{own} does not answer: {error}"}
        return web.json_response(problem, status=502, content_type=PROBLEM_JSON)
