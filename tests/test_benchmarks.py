"""The benchmark runs: what it finds is for its page, and differs from machine to machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_benchmark_checks_and_measures_our_service_and_writes_its_page(
    board: Path, tmp_path: Path
) -> None:
    if not shutil.which("wrk"):
        pytest.skip("wrk is not installed, which sends the requests: apt-get install wrk")
    page = tmp_path / "page.md"
    options: list[str | Path] = ["--only", "Runoff", "--rounds", "1", "--seconds", "1", "--write", page]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *options],
        env=os.environ | {"RUNOFF_BOARD": str(board)},
        check=True,
        capture_output=True,
    )
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| Runoff")]
    assert lines[0].split(" | ")[1] == "record"
    assert {line.split(" | ")[1] for line in lines[1:]} == {
        *("records", "dataframe_split", "V2 tensor", "V2 binary tensor")
    }
