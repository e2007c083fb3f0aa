"""Releases as records: many writers, one order, nothing lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from runoff.releases import Releases, Served
from runoff.store import Store

ROOT = Path(__file__).resolve().parents[2]
WRITERS, EACH = 4, 10

WRITE = """
import sys
from runoff.releases import Releases, Served
from runoff.store import Store
board, writer, count = sys.argv[1:]
releases = Releases(Store.open(board))
for number in range(int(count)):
    served = Served("m", f"{writer}-{number}", None)
    releases.record({"m": served}, by=writer, reason="so", action="release")
"""


def test_who_write_at_once_lose_nothing_and_are_read_in_one_order_by_everybody(tmp_path: Path) -> None:
    watching = Releases(Store.open(tmp_path))
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, tmp_path, str(writer), str(EACH)], cwd=ROOT)
        for writer in range(WRITERS)
    ]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        watching.token()
        found = watching.all("m")
        assert len(found) >= seen, "what was read once stays"
        seen = len(found)
    assert [writer.returncode for writer in writers] == [0] * WRITERS
    found = Releases(Store.open(tmp_path)).all("m")
    assert watching.all("m") == found
    versions = [release.changes["m"].version for release in found]
    for writer in map(str, range(WRITERS)):
        own = [version for version in versions if version.startswith(f"{writer}-")]
        assert own == [f"{writer}-{number}" for number in range(EACH)]
    assert watching.live("m") == found[-1].changes["m"]


def test_the_token_changes_with_each_release_and_only_then(tmp_path: Path) -> None:
    here, elsewhere = Releases(Store.open(tmp_path)), Releases(Store.open(tmp_path))
    tokens = [elsewhere.token()]
    for number in range(3):
        here.record({"m": Served("m", str(number), None)}, by="x", reason="x", action="release")
        tokens += [elsewhere.token()]
        assert elsewhere.token() == tokens[-1]
    assert len(set(tokens)) == 4
