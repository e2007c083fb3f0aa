"""The benchmark runs: what it finds is for its page, and differs from machine to machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


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


def test_clients_that_a_router_might_ask_with_are_measured_beside_ours() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.upstreams", "--asks", "16", "--rounds", "1"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    figures = [
        line.split("|")[2:4] for line in told.splitlines() if line.startswith(("| router", "| urllib3"))
    ]
    assert len(figures) == 2
    assert all(float(each) > 0 for row in figures for each in row)
