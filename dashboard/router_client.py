"""The router's REST API, as the dashboard uses it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import urllib3

# Short: a page waits for it, and asks again by itself.
TIMEOUT = urllib3.Timeout(connect=1.0, read=4.0)


class RouterDown(Exception):
    """The router did not answer, or not with what was asked for; the message says why."""


class RouterClient:
    """Asks one router. `tag` narrows to "real" or "simulation" traffic; None is all of it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http = urllib3.PoolManager(retries=False, timeout=TIMEOUT, maxsize=8)

    def stats(self, tag: str | None) -> dict[str, Any]:
        """Counts, shares with their intervals, latency, by variant."""
        return self._get("/v1/stats", tag=tag)

    def since(self, cursor: int, limit: int, tag: str | None) -> list[dict[str, Any]]:
        """The records after a cursor, oldest first, at most `limit` of them."""
        rows: list[dict[str, Any]] = self._get("/v1/predictions", since=cursor, limit=limit, tag=tag)[
            "predictions"
        ]
        return rows

    def last(self, count: int, tag: str | None) -> list[dict[str, Any]]:
        """The newest records, oldest of them first."""
        rows: list[dict[str, Any]] = self._get("/v1/predictions", last=count, tag=tag)["predictions"]
        return rows

    def _get(self, path: str, **query: str | int | None) -> dict[str, Any]:
        asked = urlencode({key: value for key, value in query.items() if value is not None})
        try:
            response = self._http.request("GET", f"{self.url}{path}?{asked}")
            answer = response.json()
        except urllib3.exceptions.NewConnectionError:  # which is a TimeoutError, too
            raise RouterDown("nothing listens there") from None
        except urllib3.exceptions.TimeoutError:
            raise RouterDown("it does not answer in time") from None
        except (urllib3.exceptions.HTTPError, ValueError):
            raise RouterDown("it gave no usable answer") from None
        if response.status != 200 or not isinstance(answer, dict):  # noqa: PLR2004
            raise RouterDown(_refusal(response.status, answer))
        return answer


def _refusal(status: int, answer: Any) -> str:
    """What an answer other than the one asked for says, with the request id that the router's log has."""
    told = answer if isinstance(answer, dict) else {}
    reason = told.get("detail") or f"it answered {status}"
    return f"{reason} (request {told['request_id']})" if told.get("request_id") else str(reason)
