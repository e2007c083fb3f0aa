"""The router's REST API, as the dashboard uses it."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

# Short: a page waits for it, and asks again by itself.
TIMEOUT = urllib3.Timeout(connect=1.0, read=4.0)
# A release is tested before it is made.
PATIENT = urllib3.Timeout(connect=1.0, read=35.0)
# What several tabs ask at about the same time is asked once.
REMEMBERED_SECONDS = 1.0

Answer = dict[str, Any]


class RouterDown(Exception):
    """The router did not answer, or not with what was asked for; the message says why.

    `status` is what it answered with, None where it did not.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class _Asked:
    """One question: its last answer, or what went wrong, and when that came."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    at: float = float("-inf")
    answer: Answer | RouterDown | None = None


class RouterClient:
    """Asks one router. `tag` narrows to "real" or "simulation" traffic; None is all of it.

    Answers are remembered for a moment. Who has seen the counts up to a cursor says so by `seen`, and gets no
    answer from before that: what lies between would never be shown.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        """Make it.

        Args:
            url: of the router.
            key: that may read, if the router asks for keys.
        """
        self.url = url.rstrip("/")
        self._http = urllib3.PoolManager(retries=False, timeout=TIMEOUT, maxsize=8)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._asked: dict[tuple[str, int], _Asked] = {}

    def stats(self, tag: str | None, start: str | None = None) -> Answer:
        """Counts, shares with their intervals, latency, by variant; from the hour of `start` on."""
        return self._get("/v1/stats", tag=tag, **{"from": start})

    def distributions(self, tag: str | None, start: str | None = None, *, seen: int = 0) -> Answer:
        """Scores and latencies of each variant in bins; from the hour of `start` on."""
        return self._get("/v1/distributions", seen, tag=tag, **{"from": start})

    def since(self, cursor: int, limit: int, tag: str | None, *, seen: int) -> list[Answer]:
        """The records after a cursor, oldest first, at most `limit` of them."""
        told = self._get("/v1/predictions", seen, since=cursor, limit=limit, tag=tag)
        rows: list[Answer] = told["predictions"]
        return rows

    def last(self, count: int, tag: str | None, start: str | None = None, *, seen: int) -> list[Answer]:
        """The newest records, oldest of them first; `start` is a time before which none is wanted."""
        told = self._get("/v1/predictions", seen, last=count, tag=tag, **{"from": start})
        rows: list[Answer] = told["predictions"]
        return rows

    def prediction(self, id_: str) -> Answer:
        """One record, with what other variants said of it, and what became of it."""
        return self._get(f"/v1/predictions/{quote(id_)}")

    def experiment(self) -> Answer:
        """The experiment's document."""
        return self._get("/v1/experiment")

    def state(self) -> Answer:
        """The version and the weights in force."""
        return self._get("/v1/experiment/state")

    def audit(self, last: int) -> list[Answer]:
        """The newest entries of the audit, oldest of them first."""
        entries: list[Answer] = self._get("/v1/audit", last=last)["entries"]
        return entries

    def drift(self, variant: str, rows: int, tag: str | None, start: str | None) -> Answer:
        """Counts of what a variant is asked now, and of what its model was trained on."""
        return self._get("/v1/drift", variant=variant, rows=rows, tag=tag, **{"from": start})

    def verdict(self, tag: str | None, phase: int | None = None) -> Answer:
        """Which model stays, and what that rests on; in the present phase, or in another one."""
        return self._get("/v1/verdict", tag=tag or "all", phase=phase)

    def phases(self, tag: str | None) -> Answer:
        """Which models answered since when, by which split and rules, and what was recorded."""
        return self._get("/v1/phases", tag=tag)

    def foreseen(self, change: Answer) -> Answer:
        """The phase that a change would end, and the one that would follow; raises RouterDown."""
        headers = {**self._headers, "Content-Type": "application/json"}
        return _told(self._request("POST", "/v1/phases/next", headers, json.dumps(change).encode()))

    def versions(self, variant: str) -> list[Answer]:
        """The versions of the model behind a variant, oldest first."""
        found: list[Answer] = self._get(f"/v1/variants/{quote(variant)}/versions")["versions"]
        return found

    def releases(self, variant: str) -> Answer:
        """What the service of a variant serves, and what was ever released to it."""
        return self._get(f"/v1/variants/{quote(variant)}/releases")

    def version(self, variant: str, version: str) -> Answer:
        """Everything that is known of a version."""
        return self._get(f"/v1/variants/{quote(variant)}/versions/{quote(version)}")

    def card(self, variant: str, version: str) -> bytes:
        """The model card of a version, HTML; raises RouterDown."""
        path = f"/v1/variants/{quote(variant)}/versions/{quote(version)}/card"
        response = self._request("GET", path, {**self._headers, "Accept": "text/html"})
        if response.status != 200:  # noqa: PLR2004
            raise _refusal(response)
        return response.data

    def key(self, key: str | None) -> Answer:
        """What an operator's key may do, or this dashboard's own where none is given; raises RouterDown."""
        headers = {"Authorization": f"Bearer {key}"} if key else self._headers
        return _told(self._request("GET", "/v1/key", headers))

    def change(
        self,
        method: str,
        path: str,
        body: Answer,
        *,
        query: dict[str, str],
        key: str | None,
        version: int | str | None,
        idempotency_key: str,
    ) -> Answer:
        """Ask for a change; the router says whether it may be.

        Args:
            method: of the request.
            path: without its query.
            body: what is asked.
            query: what stands in the address.
            key: the operator's.
            version: of what is changed, as its ETag has it; None where it has none.
            idempotency_key: the same for each attempt at the same change.

        Raises:
            RouterDown: it was not done, or nobody can tell.
        """
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if version is not None:
            headers["If-Match"] = f'"{version}"'
        address = f"{path}?{urlencode(query)}" if query else path
        told = _told(self._request(method, address, headers, json.dumps(body).encode(), PATIENT))
        self._asked.clear()
        return told

    def _get(self, path: str, seen: int = 0, /, **query: str | int | None) -> Answer:
        asked = urlencode({name: value for name, value in query.items() if value is not None})
        address = f"{path}?{asked}" if asked else path
        self._forget()
        known = self._asked.setdefault((address, seen), _Asked())
        with known.lock:
            if time.monotonic() - known.at > REMEMBERED_SECONDS:
                try:
                    known.answer = _told(self._request("GET", address, self._headers))
                except RouterDown as error:
                    known.answer = error
                known.at = time.monotonic()
            answer = known.answer
        if isinstance(answer, RouterDown):
            raise RouterDown(str(answer), answer.status)
        assert answer is not None
        return answer

    def _forget(self) -> None:
        """Drop what is too old to be told again: a thousand records take some megabytes."""
        now = time.monotonic()
        for question, asked in list(self._asked.items()):
            if now - asked.at > REMEMBERED_SECONDS and not asked.lock.locked():
                self._asked.pop(question, None)

    def _request(
        self,
        method: str,
        address: str,
        headers: dict[str, str],
        body: bytes | None = None,
        timeout: urllib3.Timeout = TIMEOUT,
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._http.request(
                method, f"{self.url}{address}", headers=headers, body=body, timeout=timeout
            )
        except urllib3.exceptions.NewConnectionError:  # which is a TimeoutError, too
            raise RouterDown("nothing listens there") from None
        except urllib3.exceptions.TimeoutError:
            raise RouterDown("it does not answer in time") from None
        except urllib3.exceptions.HTTPError:
            raise RouterDown("it gave no usable answer") from None


def _told(response: urllib3.BaseHTTPResponse) -> Answer:
    """The object that an answer holds; raises RouterDown where it is another answer."""
    if not 200 <= response.status < 300:  # noqa: PLR2004
        raise _refusal(response)
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RouterDown("it gave no usable answer")
    return answer


def _refusal(response: urllib3.BaseHTTPResponse) -> RouterDown:
    """What another answer says, with the request id that the router's log has."""
    try:
        told = response.json()
    except ValueError:
        told = {}
    told = told if isinstance(told, dict) else {}
    reason = str(told.get("detail") or f"it answered {response.status}")
    if told.get("request_id"):
        reason = f"{reason} (request {told['request_id']})"
    return RouterDown(reason, response.status)
