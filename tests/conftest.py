"""What tests share, and how a run of them is prepared: on models that the real notebooks trained."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser, Page, expect, sync_playwright
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from data import credit
from notebooks import train
from runoff.store import Store
from tests import artifacts, databases, sharing
from tests.house import CHROMIUM, CI, PATIENCE, QUIET, House, running
from traffic.clients import held_out


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the run, in the process that starts the workers."""
    # How long an example takes says how busy the machine is.
    settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("calm")
    # As services have it: threads that wait for others at work on the same cores turn round and round.
    os.environ["OMP_NUM_THREADS"] = "1"
    threadpool_limits(1)
    # Services start faster when they find their modules compiled, whoever asks Python to compile nothing.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if not is_worker(config):
        os.environ[sharing.RUN] = tempfile.mkdtemp(prefix="runoff-tests-")
        artifacts.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the workers shared."""
    if not is_worker(config) and sharing.RUN in os.environ:
        databases.end()
        shutil.rmtree(os.environ.pop(sharing.RUN))


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of pytest-xdist's workers."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by what it needs, so that one can choose with `-m`."""
    for item in items:
        assert isinstance(item, pytest.Function)
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if "browser" in item.fixturenames:
            item.add_marker(pytest.mark.browser)
        if "postgresql" in given or "cluster" in item.fixturenames:
            item.add_marker(pytest.mark.postgres)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let each failure name the folder in which there is what was seen of it."""
    report = yield
    if report.failed:
        report.sections.append(("Kept of this failure", f"{artifacts.keep(item)}/"))
    return report


@pytest.fixture(autouse=True)
def _nothing_of_other_tests() -> None:
    artifacts.forget()


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A store with both models, trained on the sample by the notebooks.

    They are trained once for the data and code as they are, and kept for the next run.
    """
    digests = (credit.digest(credit.load()), *(train.code_digest(name) for name in train.NOTEBOOKS))
    name = f"board-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:12]}"
    within = pytestconfig.rootpath / "var" / "tests"
    within.mkdir(parents=True, exist_ok=True)
    trained = sharing.once(name, lambda folder: train.train(str(folder), lambda *_: None), within)
    own: Path = shutil.copytree(trained, tmp_path_factory.mktemp("trained") / "board")
    return own


@pytest.fixture(scope="session")
def store(board: Path) -> Store:
    return Store.open(board)


@pytest.fixture(scope="session")
def house(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house that the tests share; each looks only at what it added."""
    with running(tmp_path_factory.mktemp("house"), board) as shared:
        yield shared


@pytest.fixture
def own_house(board: Path, tmp_path: Path) -> Iterator[House]:
    """A house for one test alone, which may break it."""
    with running(tmp_path, board) as own:
        yield own


@pytest.fixture(scope="session")
def clients() -> list[dict[str, int]]:
    """Three hundred held-out clients."""
    return list(islice(held_out(300, seed=1), 300))


@pytest.fixture(scope="session")
def client(clients: list[dict[str, int]]) -> dict[str, int]:
    return clients[0]


@pytest.fixture(scope="session")
def features() -> tuple[str, ...]:
    return credit.FEATURES


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the tests of a module: while it is there, asyncio runs nothing else in this thread."""
    if not CHROMIUM.exists():
        # CI installs it, and must not pass without.
        assert not CI, f"{CHROMIUM} is not there"
        pytest.skip(f"{CHROMIUM} is not there: apt-get install chromium-headless-shell")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab of its own, which fails the test if it asks another host or the console tells of an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, color_scheme="light")
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    hosts: set[str | None] = set()
    errors: list[str] = []
    tab.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    context.close()
    assert hosts - {None} <= {"127.0.0.1"}
    assert errors == []
