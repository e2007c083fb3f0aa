"""What is kept of a test that fails: logs of its services, the last requests, and what its pages showed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error

# The folder of this run's failures. The process that starts the workers names it; they inherit the variable.
KEPT = "RUNOFF_TESTS_KEPT"
ROOT = Path(__file__).resolve().parent.parent

# What was asked last and answered.
talk: deque[dict[str, Any]] = deque(maxlen=40)
# Where the services that were started keep their logs, and those of them that have been stopped.
logs: list[Path] = []
ended: list[Path] = []


def begin() -> None:
    """Name the folder of this run; it is made by the first test that fails."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    os.environ.setdefault(KEPT, str(ROOT / "var" / "tests" / f"{now}-{os.getpid()}"))


def forget() -> None:
    """Begin a test: services that are stopped, and what was asked before, say nothing of it."""
    talk.clear()
    logs[:] = [place for place in logs if place not in ended]
    ended.clear()


def said(method: str, url: str, sent: Any, status: int, body: bytes) -> None:
    """Remember a request and its answer, for the case that its test fails."""
    asked = {"method": method, "url": url, "sent": _short(sent.get("body")), "headers": sent.get("headers")}
    talk.append({"at": datetime.now(UTC).isoformat(), **asked, "status": status, "answer": _short(body)})


def keep(item: pytest.Item) -> Path:
    """Keep what there is of a test that has just failed; returns the folder."""
    folder = Path(os.environ[KEPT]) / re.sub(r"[^\w.-]+", "-", item.nodeid.removeprefix("tests/"))[:150]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requests.json").write_text(json.dumps(list(talk), indent=1, default=str), encoding="utf-8")
    for place in dict.fromkeys(logs):
        for log in place.glob("*.log"):
            into = folder / "log" / place.parent.name
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, into)
    browser = getattr(item, "funcargs", {}).get("browser")
    if isinstance(browser, Browser):
        pages = [page for context in browser.contexts for page in context.pages]
        for number, page in enumerate(pages):
            try:
                page.screenshot(path=folder / f"page-{number}.png", full_page=True, timeout=10_000)
                (folder / f"page-{number}.html").write_text(page.content(), encoding="utf-8")
            except Error as error:
                (folder / f"page-{number}.txt").write_text(str(error), encoding="utf-8")
    return folder


def _short(body: Any) -> str | None:
    if isinstance(body, str):
        body = body.encode()
    return body[:2000].decode("utf-8", "replace") if isinstance(body, bytes) else None
