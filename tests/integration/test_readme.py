"""The README does what it says: each of its blocks that follows `<!-- run -->` is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runoff.store import Store
from tests.house import House

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- run -->\n```(\w+)\n(.*?)```", README, flags=re.DOTALL)
SHELL = [code for language, code in BLOCKS if language == "sh"]
[VERSIONS] = re.findall(r"<!-- run versions -->\n```sh\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]


def at(house: House, code: str) -> str:
    """The commands of the README, on the ports of a house."""
    urls = house.services.urls
    for port, service in ((8000, "router"), (8001, "model_a"), (8002, "model_b")):
        code = code.replace(f"http://127.0.0.1:{port}", urls[service])
    return code


def test_there_are_commands_to_run() -> None:
    assert len(SHELL) == 4
    assert len(PYTHON) == 1


@pytest.mark.parametrize("block", SHELL, ids=["ask", "look", "report", "ask a model"])
def test_each_command_answers(house: House, block: str) -> None:
    done = subprocess.run(["bash", "-euc", at(house, block)], capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line]
    assert len(answers) == block.count("curl ")
    assert not any(str(answer.get("type")).startswith("urn:runoff:problem:") for answer in answers)
    if "predict'" not in block and "/predict " in block:
        assert 0 <= answers[0]["prediction"] <= 1


@pytest.mark.slow
def test_versions_are_managed_as_written(board: Path, tmp_path: Path) -> None:
    own = tmp_path / "board"
    shutil.copytree(board, own)
    code = VERSIONS.replace("var/", f"{tmp_path}/")
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euc", code],
        cwd=ROOT,
        env=os.environ | {"RUNOFF_BOARD": str(own), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing was live then" in done.stdout
    history = [line for line in done.stdout.splitlines() if "B was not that good" in line]
    assert len(history) == 1
    assert "rollback" in history[0]
    assert (tmp_path / "model-a.html").read_text().startswith("<!doctype html>")


def test_your_own_model_is_stored_and_served_as_written(tmp_path: Path) -> None:
    environment = os.environ | {"RUNOFF_BOARD": str(tmp_path)}
    subprocess.run([sys.executable, "-c", PYTHON[0]], env=environment, check=True)
    assert sum(bool(line.strip()) for line in PYTHON[0].splitlines()) < 10
    [served] = re.findall(r"```python\n(from runoff\.prediction.*?)```", README, flags=re.DOTALL)
    ask = (
        f"{served}\nclient = app.test_client()\n"
        "print(client.post('/predict', json={'age': 23, 'income': 1.5}).text)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", ask], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(answer)["version"] == Store.open(tmp_path).version("my-model").id
    assert json.loads(answer)["prediction"] > 0.5


def test_every_place_that_the_readme_links_to_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_every_room_is_in_the_table() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert rooms == set(re.findall(r"\[`(\w+)/`\]", README))
