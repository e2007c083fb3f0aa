"""What a failing test leaves behind for whoever looks for the reason."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
FAILS = """
from flask import Flask
from tests import artifacts
from tests.house import Visitor, served

def test_that_fails(page, tmp_path):
    app = Flask("other")
    app.add_url_rule("/<path:path>", "any", lambda path: f"<h1>{path}</h1>")
    (tmp_path / "model_a.log").write_text("it said why")
    artifacts.logs.append(tmp_path)
    with served(app) as url:
        page.goto(f"{url}/seen")
        assert Visitor(url).sends(b"asked", "/there").status == 200, "not this"
"""


@pytest.mark.slow
def test_a_failure_names_a_folder_with_logs_requests_and_a_picture_of_the_page(
    page: Page, tmp_path: Path
) -> None:
    assert page.url == "about:blank"
    (tmp_path / "test_it.py").write_text(FAILS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir", ROOT, tmp_path / "test_it.py"],
        cwd=ROOT,
        env=os.environ | {"RUNOFF_TESTS_KEPT": str(tmp_path / "kept")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    [named] = re.findall(r"-+ Kept of this failure -+\n(.*)/\n", done.stdout)
    kept = Path(named)
    [asked] = json.loads((kept / "requests.json").read_text())
    assert (asked["method"], asked["sent"], asked["status"]) == ("POST", "asked", 405)
    assert [log.read_text() for log in kept.glob("log/*/model_a.log")] == ["it said why"]
    assert (kept / "page-0.png").read_bytes().startswith(b"\x89PNG")
    assert "<h1>seen</h1>" in (kept / "page-0.html").read_text()
