"""Bring the README up to date: the output of its two commands, and the screenshots. `make docs` runs this.

It runs what a reader would, on the ports of `make run`, with a `var/` of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"
DASHBOARD = "http://127.0.0.1:8050"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
# The pages, and what is there when they are drawn.
PAGES = {
    "": "#share-chart .scatterlayer",
    "verdict": "#verdict-basis",
    "models": "#versions table",
    "load": "#percentiles-chart .scatterlayer",
    "drift": "#psi-chart .barlayer",
    "experiment": "#timeline b",
}
UP = "Up until Ctrl-C."


def main() -> None:
    """Run both commands, and put what they say and show into the README."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as var:
        said = run_and_look(Path(var))
    tests = subprocess.run(
        ["make", "test"],  # noqa: S607
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    text = README.read_text(encoding="utf-8")
    text = replaced(text, "run", said)
    text = replaced(text, "test", tests.strip().splitlines()[-1])
    README.write_text(text, encoding="utf-8")


def environment() -> dict[str, str]:
    """The surroundings of a reader: not those of CI, nor of the make that runs this."""
    ours = ("CI", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    return {name: value for name, value in os.environ.items() if name not in ours}


def run_and_look(var: Path) -> str:
    """Run `make run` until it is up, take the screenshots, and stop it; return what it said."""
    process = subprocess.Popen(
        ["make", "run"],  # noqa: S607
        cwd=ROOT,
        env=environment() | {"RUNOFF_VAR": str(var)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith(UP):
            break
    try:
        take_screenshots(something_to_see(var))
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
    return "\n".join(lines)


def something_to_see(var: Path) -> str:
    """Let outcomes be known, and two load tests be kept; returns the ids of those, for an address."""
    ours = environment() | {
        "RUNOFF_LOADS": str(var / "load"),
        "RUNOFF_LOAD_TARGETS": "router=http://127.0.0.1:8000 model_a=http://127.0.0.1:8001",
    }

    def runoff(*arguments: str) -> str:
        return subprocess.run(
            [ROOT / ".venv" / "bin" / "runoff", *arguments],
            env=ours,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    runoff("simulate", "--requests", "1500", "--outcomes", "1")
    offered = ("--rate", "100", "--ramp", "5", "--seconds", "20")
    runs = [
        json.loads(runoff("load", "--target", target, *offered, "--json")) for target in ("router", "model_a")
    ]
    return ",".join(run["id"] for run in runs)


def take_screenshots(runs: str) -> None:
    """The dashboard's pages in both themes, as wide as a laptop, and on a phone.

    Args:
        runs: the ids of the load tests that are shown.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        for path, drawn in PAGES.items():
            name = f"dashboard-{path}" if path else "dashboard"
            for theme in ("light", "dark"):
                page = browser.new_page(viewport={"width": 1280, "height": 1130})
                shoot(page, address(path, theme, runs), drawn, f"{name}-{theme}.png")
            phone = browser.new_page(viewport={"width": 390, "height": 1600})
            shoot(phone, address(path, "light", runs), drawn, f"{name}-phone.png")
        browser.close()


def address(path: str, theme: str, runs: str) -> str:
    """Of a page in a theme; the one of load tests with those that are shown."""
    return f"{DASHBOARD}/{path}?theme={theme}" + (f"&runs={runs}" if path == "load" else "")


def shoot(page: Page, url: str, drawn: str, name: str) -> None:
    """Take a screenshot of an address, once what it draws is there, and close the tab.

    Args:
        page: the tab.
        url: the address.
        drawn: a selector of what is drawn last.
        name: of the file in docs/images.
    """
    page.goto(url)
    page.wait_for_selector(drawn)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1000)
    page.screenshot(path=IMAGES / name)
    page.close()


def replaced(text: str, name: str, output: str) -> str:
    """The README with another output of a command."""
    block = f"<!-- output: {name} -->\n```text\n{output}\n```\n"
    return re.sub(rf"<!-- output: {name} -->\n```text\n.*?```\n", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
