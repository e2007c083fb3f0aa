"""A load test in a process of its own, for a program that has other things to do.

`python -m traffic.load_process` reads one line of JSON from its input, {"run": …, "key": …}, and stops when
its input ends: it outlives nobody who started it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from traffic.load import GRACE_SECONDS, Load, Recorder, Run, measure
from traffic.runs import FOLDER, ROUTER, NoSuchRun, Runs

ROOT = Path(__file__).resolve().parent.parent
# Should it hang all the same, the system ends it.
LAST_SECONDS = 10


class Loader:
    """Runs one load test at a time, in a process of its own, and knows how it stands."""

    def __init__(self, targets: Mapping[str, str], runs: Runs) -> None:
        """Nothing is started before `start`.

        Args:
            targets: where load may be sent: addresses by name.
            runs: where the process keeps its run.
        """
        self.targets = targets
        self.runs = runs
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._id: str | None = None

    @property
    def running(self) -> str | None:
        """The id of the run that is under way, None where there is none."""
        with self._lock:
            return self._id if self._alive() else None

    def start(self, load: Load, key: str | None = None) -> str | None:
        """Start a run in the background, and return its id; None, and nothing is done, while another runs.

        Args:
            load: what is offered. Its target must be one of `targets`.
            key: that opens the router. No other target is told of it.

        Raises:
            KeyError: the target is none of ours.
        """
        url = self.targets[load.target]
        with self._lock:
            if self._alive():
                return None
            run = Recorder(load, url).run
            self.runs.keep(run)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "traffic.load_process"],
                cwd=ROOT,
                env=os.environ | {FOLDER: str(self.runs.folder)},
                stdin=subprocess.PIPE,
            )
            self._id = run.id
            order = {"run": run.model_dump(), "key": key if load.target == ROUTER else None}
            assert self._process.stdin
            # Where it ended at once, `running` finds out.
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()
        return run.id

    def stop(self) -> None:
        """Send nothing further; what is under way is still waited for."""
        with self._lock:
            if self._process and self._process.stdin:
                self._process.stdin.close()

    def _alive(self) -> bool:
        """Whether the process runs; where it has ended without a word, that is put into its run."""
        if self._process is None:
            return False
        code = self._process.poll()
        if code is None:
            return True
        self._process = None
        assert self._id
        try:
            run = self.runs.get(self._id)
        except NoSuchRun:
            return False
        if run.state == "running":
            why = f"its process ended with exit code {code}"
            self.runs.keep(run.model_copy(update={"state": "broken off", "problem": why}))
        return False


def main() -> None:
    """Run the test that stands on the first line of the input."""
    order = json.loads(sys.stdin.buffer.readline())
    run = Run.model_validate(order["run"])
    signal.alarm(round(run.load.seconds + GRACE_SECONDS) + LAST_SECONDS)
    stop = threading.Event()

    def follow() -> None:
        # Past Python's buffer, whose lock nobody could take from this thread at the end.
        while os.read(0, 1):
            pass
        stop.set()

    threading.Thread(target=follow, daemon=True).start()
    measure(Recorder(run.load, run.url, run.id), key=order["key"], stop=stop, on_told=Runs.open().keep)


if __name__ == "__main__":
    main()
