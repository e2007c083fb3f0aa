"""Load tests that were run: a file each, what they say in words, and the targets that there are."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from traffic.load import Run

FOLDER = "RUNOFF_LOADS"
TARGETS = "RUNOFF_LOAD_TARGETS"
ROUTER = "router"
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "var" / "load"
# A run says what it is at several times a second. One that has been silent for longer has ended unseen.
SILENCE = timedelta(seconds=10)
# A sender that is late for more than this share of its requests is the bound itself.
MUCH = 0.01
FIGURES = ("p50", "p90", "p95", "p99", "p99.9", "max")


class NoSuchRun(Exception):
    """There is no run of this name."""


def targets(environment: Mapping[str, str], router_url: str) -> dict[str, str]:
    """Where load may be sent, and nowhere else: the address of each target by its name.

    Args:
        environment: its RUNOFF_LOAD_TARGETS names them, "router=http://… model_a=http://…".
        router_url: the only one, where it names none.

    Raises:
        ValueError: it names something that is no http address.
    """
    named = environment.get(TARGETS, "").split()
    if not named:
        return {ROUTER: router_url.rstrip("/")}
    found = {}
    for each in named:
        name, _, url = each.partition("=")
        if not name or not url.startswith(("http://", "https://")):
            raise ValueError(f"{TARGETS}: {each!r} is not a name, an equals sign and an http address")
        found[name] = url.rstrip("/")
    return found


class Runs:
    """The runs in a folder, which is made when the first one is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # By name: when its file was written, and what it says.
        self._read: dict[str, tuple[int, Run]] = {}

    @classmethod
    def open(cls, environment: Mapping[str, str] = os.environ) -> Runs:
        """Those in RUNOFF_LOADS, by default in `var/load`."""
        return cls(Path(environment.get(FOLDER) or DEFAULT_FOLDER))

    def keep(self, run: Run) -> None:
        """Write a run, or what has become of it; whoever reads meanwhile finds the one or the other."""
        self.folder.mkdir(parents=True, exist_ok=True)
        half = self.folder / f".{run.id}.part"
        half.write_text(run.model_dump_json(), encoding="utf-8")
        half.replace(self._path(run.id))

    def get(self, id_: str) -> Run:
        """A run; one that says that it is running, and has been silent since, was broken off.

        Raises:
            NoSuchRun: there is none of this name, or it cannot be read.
        """
        path = self._path(id_)
        try:
            # A name is a name, and no way to other folders.
            if path.parent != self.folder or not id_:
                raise FileNotFoundError
            written = path.stat().st_mtime_ns
            known = self._read.get(id_)
            if known is None or known[0] != written:
                known = written, Run.model_validate_json(path.read_bytes())
                self._read[id_] = known
        except (OSError, ValidationError):
            raise NoSuchRun(f"there is no load test {id_}") from None
        run = known[1]
        silent = datetime.now(UTC) - datetime.fromisoformat(run.updated) > SILENCE
        if run.state == "running" and silent:
            return run.model_copy(update={"state": "broken off", "problem": "it ended without a word"})
        return run

    def newest(self, count: int) -> list[Run]:
        """The newest runs, newest first; files that are none are passed over."""
        found = []
        for path in sorted(self.folder.glob("*.json"), reverse=True):
            try:
                found.append(self.get(path.stem))
            except NoSuchRun:
                continue
            if len(found) == count:
                break
        return found

    def _path(self, id_: str) -> Path:
        return self.folder / f"{id_}.json"


def as_csv(run: Run) -> str:
    """The moments of a run as CSV, a row each, with the same header whatever happened."""
    kinds = sorted(run.errors)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        (
            "second",
            "offered",
            "achieved",
            "p50_ms",
            "p95_ms",
            "p99_ms",
            *(f"errors: {kind}" for kind in kinds),
        )
    )
    for each in run.moments:
        counts = (each.errors.get(kind, 0) for kind in kinds)
        writer.writerow((each.at, each.offered, each.achieved, each.p50, each.p95, each.p99, *counts))
    return text.getvalue()


def offered(run: Run) -> str:
    """What was offered, in a few words."""
    load = run.load
    what = f"{load.users} users" if load.users else f"{load.per_second:g}/s"
    return f"{what}, ramp {load.ramp:g} s" if load.ramp else what


def side_by_side(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """A row for each figure, a column for each run."""
    return [
        ("target", *(each.load.target for each in runs)),
        ("offered", *(offered(each) for each in runs)),
        ("state", *(each.state for each in runs)),
        ("requests due", *(f"{each.offered:,}" for each in runs)),
        ("answered", *(f"{each.answered:,}" for each in runs)),
        ("answered a second", *(f"{each.answered / each.ran:,.1f}" if each.ran else "–" for each in runs)),
        ("failed", *(f"{each.failed:,}" for each in runs)),
        ("not asked by users who waited", *(f"{each.omitted:,}" for each in runs)),
        *((f"{name}, ms", *(ms(each, name) for each in runs)) for name in FIGURES),
    ]


def behind(run: Run) -> str | None:
    """Why the figures are a bound of the sender's, where they are."""
    sent = run.answered + run.failed
    if not sent or run.late / sent <= MUCH:
        return None
    return (
        f"{run.late / sent:.0%} of the requests left late, since the sender itself was too slow: "
        "the service may be better than this."
    )


def ms(run: Run, name: str) -> str:
    """A figure of the latency in ms, by its name in FIGURES."""
    value = run.latency.get(name)
    return "–" if value is None else f"{value:,.1f}"
