"""Publishing, from the command to an answer.

Bundles are published to a server that speaks as much of Posit Connect's REST API as rsconnect-python asks
for. What arrived there is unpacked, installed and run as the platform does it. By which server that runs a
WSGI app is not documented; what is, RUN does with Python's own: an environment is made of `requirements.txt`,
the entrypoint is imported with the bundle as the working directory, and the app is mounted below the path of
the content, which WSGI calls SCRIPT_NAME. It gets no variables but those of the bundle.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pandas as pd
import pytest
from flask import Flask, request
from playwright.sync_api import Page, expect

from dashboard.app import create_app as create_dashboard
from launch import environment
from publish.__main__ import publish
from publish.bundles import BUNDLES, REQUIREMENTS, ROOT
from runoff.management import Management
from runoff.store import Store
from tests.house import Visitor, served

PREFIX = "/model-management-python"

RUN = """
import importlib, sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

entrypoint, mode, prefix = sys.argv[1:]
module, _, name = entrypoint.partition(":")
app = getattr(importlib.import_module(module), name)
if mode == "python-dash":
    app = app.server

def mounted(environ, start_response):
    path = environ["PATH_INFO"]
    assert path.startswith(prefix), path
    return app(environ | {"SCRIPT_NAME": prefix, "PATH_INFO": path.removeprefix(prefix)}, start_response)

class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

class Handler(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass

server = make_server("127.0.0.1", 0, mounted, Server, Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""

# What each bundle holds at its root; besides, all hold these.
ALWAYS = {"manifest.json", "requirements.txt", ".python-version", "runoff"}
HOLDS = {
    "model-a": {"model_a"},
    "model-b": {"model_b"},
    "router": {"router", "verdict", "experiment.toml"},
    "dashboard": {"dashboard", "data", "traffic", "verdict"},
    "notebook-a": {"data", "notebooks", "train_model_a.ipynb"},
    "notebook-b": {"data", "notebooks", "train_model_b.ipynb"},
    "notebook-decide": {"notebooks", "verdict", "decide.ipynb"},
}
ENTRY = {
    "model-a": ("python-api", "model_a.app:app"),
    "model-b": ("python-api", "model_b.app:app"),
    "router": ("python-api", "router.app:app"),
    "dashboard": ("python-dash", "dashboard.app:app"),
    "notebook-a": ("jupyter-static", "train_model_a.ipynb"),
    "notebook-b": ("jupyter-static", "train_model_b.ipynb"),
    "notebook-decide": ("jupyter-static", "decide.ipynb"),
}
# A pin, and on which Pythons or systems it holds.
PIN = re.compile(r"[a-z0-9.-]+==[^ ]+( ; .+)?")


@dataclass
class Content:
    """One piece of content on the server: its bundles, oldest first, and its variables."""

    title: str = ""
    bundles: list[bytes] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)


def connect(contents: dict[str, Content]) -> Flask:
    """A server to publish to: it keeps what comes, by the content's id, and runs nothing."""
    app = Flask(__name__)
    api = "/__api__/v1/content"

    @app.get("/__api__/server_settings")
    def settings() -> dict[str, Any]:
        return {"version": "2025.12.0"}

    @app.get("/__api__/v1/user")
    def user() -> dict[str, Any]:
        return {"username": "publisher"}

    @app.get(api)
    def search() -> list[Any]:
        return []

    @app.post(api)
    def create() -> dict[str, Any]:
        guid = f"guid-{len(contents)}"
        contents[guid] = Content()
        return about(guid)

    @app.route(f"{api}/<guid>", methods=["GET", "PATCH"])
    def about(guid: str) -> dict[str, Any]:
        if request.method == "PATCH":
            contents[guid].title = request.get_json()["title"]
        url = f"{request.host_url}content/{guid}/"
        title = contents[guid].title
        return {"guid": guid, "id": guid, "title": title, "content_url": url, "dashboard_url": url}

    @app.patch(f"{api}/<guid>/environment")
    def environment(guid: str) -> list[str]:
        contents[guid].variables |= {each["name"]: each["value"] for each in request.get_json()}
        return list(contents[guid].variables)

    @app.post(f"{api}/<guid>/bundles")
    def upload(guid: str) -> dict[str, Any]:
        contents[guid].bundles.append(request.get_data())
        return {"id": str(len(contents[guid].bundles))}

    @app.post(f"{api}/<guid>/deploy")
    def deploy(guid: str) -> dict[str, Any]:
        return {"task_id": guid}

    @app.get("/__api__/v1/tasks/<guid>")
    def task(guid: str) -> dict[str, Any]:
        return {"id": guid, "finished": True, "code": 0, "error": "", "output": [], "last": 0}

    @app.get("/content/<guid>/<path:_>/")
    def content(guid: str, _: str) -> str:
        return contents[guid].title

    return app


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every bundle, published, as it lies unpacked on the server, by its name."""
    folder = tmp_path_factory.mktemp("published")
    contents: dict[str, Content] = {}
    with served(connect(contents)) as url, pytest.MonkeyPatch.context() as patch:
        publishes_to(url, folder, patch)
        for name, bundle in BUNDLES.items():
            publish(bundle, folder / "stage" / name, [])
    for name, content in zip(BUNDLES, contents.values(), strict=True):
        with tarfile.open(fileobj=io.BytesIO(content.bundles[0])) as bundle_file:
            # Python 3.11 has filters from 3.11.4 on.
            bundle_file.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            bundle_file.extractall(folder / name)
    return {name: folder / name for name in BUNDLES}


def publishes_to(url: str, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Let this process publish to a server, as somebody who never did before."""
    for variable in {each for bundle in BUNDLES.values() for each in bundle.variables}:
        patch.delenv(variable, raising=False)
    patch.setenv("HOME", str(home))
    patch.setenv("CONNECT_SERVER", url)
    patch.setenv("CONNECT_API_KEY", "a-key")


def test_publishing_again_updates_the_same_content_and_its_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents: dict[str, Content] = {}
    with served(connect(contents)) as url:
        publishes_to(url, tmp_path, monkeypatch)
        monkeypatch.setenv("MODEL_A_URL", "http://a.example")
        publish(BUNDLES["router"], tmp_path / "router", [])
        monkeypatch.setenv("MODEL_B_URL", "http://b.example")
        publish(BUNDLES["router"], tmp_path / "router", ["--title", "The router"])
    (content,) = contents.values()
    assert content.title == "The router"
    assert content.variables == {"MODEL_A_URL": "http://a.example", "MODEL_B_URL": "http://b.example"}
    assert len(content.bundles) == 2


def test_the_command_writes_manifests_without_a_server_and_fails_in_words(tmp_path: Path) -> None:
    written = commands("--manifest", "router")
    assert written.returncode == 0
    assert "router is written to var/publish/router/" in written.stdout
    assert (ROOT / "var" / "publish" / "router" / "manifest.json").exists()

    unknown = commands("no-such-thing")
    assert unknown.returncode == 2
    assert all(name in unknown.stderr for name in BUNDLES)

    nowhere = {"CONNECT_SERVER": "http://127.0.0.1:9", "CONNECT_API_KEY": "a-key", "HOME": str(tmp_path)}
    refused = commands("router", "--", "--title", "Unheard of", **nowhere)
    assert refused.returncode == 1
    assert "Could not connect to http://127.0.0.1:9" in refused.stdout
    assert "Traceback" not in refused.stderr


def commands(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "publish", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_holds_what_it_needs_and_its_manifest_says_so(published: dict[str, Path], name: str) -> None:
    folder = published[name]
    assert {path.name for path in folder.iterdir()} == ALWAYS | HOLDS[name]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["metadata"]["appmode"], manifest["metadata"]["entrypoint"]) == ENTRY[name]
    assert manifest["environment"]["python"]["requires"] == ">=3.11"
    assert manifest["python"]["package_manager"]["package_file"] == "requirements.txt"
    files = {path for path in folder.rglob("*") if path.is_file()} - {folder / "manifest.json"}
    checksums = {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}
    assert {path: each["checksum"] for path, each in manifest["files"].items()} == checksums
    for path in checksums.keys() - {"requirements.txt", ".python-version"}:
        here = ROOT / path if (ROOT / path).exists() else ROOT / "notebooks" / path
        assert (folder / path).read_bytes() == here.read_bytes()
    assert not [path for path in checksums if "__pycache__" in path]


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*.in")), ids=lambda path: path.stem)
def test_a_bundle_has_the_very_versions_of_the_lock(path: Path) -> None:
    lock, pins = (pins_of(each) for each in (ROOT / "requirements.txt", path.with_suffix(".txt")))
    assert all(PIN.fullmatch(pin) for pin in pins)
    # What a package is needed for may differ, and with that on which systems it is.
    assert {pin.partition(" ;")[0] for pin in pins} <= {pin.partition(" ;")[0] for pin in lock}
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    wanted = {line.partition("[")[0] for line in lines}
    assert wanted <= {pin.partition("==")[0] for pin in pins}


def pins_of(lock: Path) -> set[str]:
    return {line for line in lock.read_text().splitlines() if line and not line.lstrip().startswith("#")}


@pytest.fixture(scope="module")
def online(
    published: dict[str, Path], board: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Visitor]]:
    """The four published services, each below a path of its own, by their names."""
    with ExitStack() as stack:

        def start(name: str, **variables: str) -> Visitor:
            return stack.enter_context(run(published[name], f"{PREFIX}/{name}", variables))

        model_a, model_b = (start(name, RUNOFF_BOARD=str(board)) for name in ("model-a", "model-b"))
        ledger = f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.sqlite'}"
        # As people copy addresses: with a slash at the end, or without.
        router = start("router", MODEL_A_URL=model_a.url, MODEL_B_URL=f"{model_b.url}/", RUNOFF_LEDGER=ledger)
        dashboard = start("dashboard", ROUTER_URL=f"{router.url}/")
        yield {"model-a": model_a, "model-b": model_b, "router": router, "dashboard": dashboard}


@contextmanager
def run(folder: Path, prefix: str, variables: Mapping[str, str]) -> Iterator[Visitor]:
    """An unpacked bundle as the platform runs it, below a prefix."""
    metadata = json.loads((folder / "manifest.json").read_text())["metadata"]
    python = environment.of(folder / "requirements.txt")
    with (folder.parent / f"{folder.name}.log").open("w+") as log:
        process = subprocess.Popen(
            [python, "-c", RUN, metadata["entrypoint"], metadata["appmode"], prefix],
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout
            port = process.stdout.readline().strip()
            assert port, Path(log.name).read_text()
            yield Visitor(f"http://127.0.0.1:{port}{prefix}")
        finally:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model-a", "model-b"])
def test_a_published_model_answers_below_its_prefix(
    online: dict[str, Visitor], store: Store, clients: list[dict[str, int]], name: str
) -> None:
    service = online[name]
    offline = store.load(name)
    wanted = pytest.approx(offline.probabilities(pd.DataFrame(clients[:3])), abs=1e-6)
    # One record is answered ahead of Flask, a batch by Flask.
    assert [service.asks(client).prediction for client in clients[:3]] == wanted
    assert service.asks({"records": clients[:3]}).json["predictions"] == wanted
    about = service.gets("/metadata").json
    assert (about["version"], about["user"]["evaluator"]["name"]) == (offline.version.id, "onnxruntime")
    assert service.gets("/readyz").status == 200


@pytest.mark.slow
def test_a_published_model_shows_its_document_and_its_card(
    online: dict[str, Visitor], store: Store, page: Page
) -> None:
    service = online["model-a"]
    version = store.version("model-a").id
    assert version in service.gets(f"/v1/models/model-a/versions/{version}/card").body.decode()
    page.goto(f"{service.url}/docs")
    expect(page.get_by_role("heading", name="model-a").first).to_be_visible()


@pytest.mark.slow
def test_a_published_model_serves_by_scikit_learn_what_is_not_translated(
    published: dict[str, Path], store: Store, client: dict[str, int], tmp_path: Path
) -> None:
    stored = store.version("model-b")
    Store.open(tmp_path).write("model-b", store.estimator("model-b"), prototype=stored.prototype, record={})
    with run(published["model-b"], PREFIX, {"RUNOFF_BOARD": str(tmp_path)}) as service:
        assert service.gets("/metadata").json["user"]["evaluator"]["name"] == "scikit-learn"
        wanted = store.load("model-b").probabilities(pd.DataFrame([client]))[0]
        assert service.asks(client).prediction == pytest.approx(wanted, abs=1e-6)


@pytest.mark.slow
def test_a_published_router_asks_the_published_models_and_records(
    online: dict[str, Visitor], clients: list[dict[str, int]]
) -> None:
    router = online["router"]
    replies = [router.asks(client) for client in clients[:20]]
    assert {reply.status for reply in replies} == {200}
    asked = {reply.headers["X-Request-ID"]: reply.prediction for reply in replies}
    recorded = {
        row["id"]: row["prediction"] for row in router.gets("/v1/predictions?last=20").json["predictions"]
    }
    assert recorded == asked
    assert router.gets("/stats").json["variants"][0]["share_interval"]


@pytest.mark.slow
def test_a_published_dashboard_works_in_a_browser_below_its_prefix(
    online: dict[str, Visitor], page: Page
) -> None:
    works_below(f"{PREFIX}/dashboard/", page, online["dashboard"], online["router"])


@pytest.mark.slow
def test_a_dashboard_works_behind_a_proxy_that_takes_a_prefix_away_and_says_nothing_of_it(
    online: dict[str, Visitor], page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTER_URL", online["router"].url)
    with served(create_dashboard().server, "/any/prefix") as url:
        works_below("/any/prefix/", page, Visitor(url), online["router"])


def works_below(prefix: str, page: Page, dashboard: Visitor, router: Visitor) -> None:
    """Open the dashboard, and let it send traffic; it asks for nothing that is not below its prefix."""
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(urlsplit(request.url).path))
    before = router.gets("/stats").json["requests"]
    page.goto(dashboard.url + "/")
    expect(page.locator("#tile-requests")).to_have_text(f"{before:,}")
    page.get_by_role("textbox", name="Requests").fill("30")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#progress-text")).to_have_text("Sent: 30 of 30")
    expect(page.locator("#tile-requests")).to_have_text(f"{before + 30:,}")
    expect(page.locator("#requests-chart .js-plotly-plot")).to_be_visible()
    assert router.gets("/stats").json["requests"] == before + 30
    assert [path for path in asked if not path.startswith(prefix)] == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), [("notebook-a", "model-a"), ("notebook-b", "model-b")])
def test_a_published_notebook_run_again_stores_a_candidate_judges_it_and_releases_nothing(
    published: dict[str, Path], board: Path, tmp_path: Path, name: str, model: str
) -> None:
    shutil.copytree(board, tmp_path / "board")
    management = Management(Store.open(tmp_path / "board"))
    live = management.version(model)
    management.release(model, live, by="a test", reason="to be compared with")

    executed = executes(published[name], tmp_path)

    candidate = management.version(model)
    assert candidate.id != live.id
    assert candidate.record["code_digest"] == live.record["code_digest"]
    assert len(management.history()) == 1
    told = executed.cells[-1].outputs[0].data["text/markdown"]
    # The same data, code and seed give the same model.
    assert "**These rows show no difference" in told
    assert f"What is live is {model} {live.id}." in told
    assert f"runoff release {model} {candidate.id} --reason" in told


@pytest.mark.slow
def test_a_published_notebook_of_the_decision_judges_what_the_published_router_has_on_record(
    published: dict[str, Path], online: dict[str, Visitor], clients: list[dict[str, int]], tmp_path: Path
) -> None:
    router = online["router"]
    for client in clients[:5]:
        assert router.asks(client).status == 200
    executed = executes(published["notebook-decide"], tmp_path, RUNOFF_ROUTER_URL=router.url)
    told = next(cell for cell in executed.cells if cell.cell_type == "code").outputs[0].data["text/markdown"]
    assert router.gets("/v1/verdict").json["sentence"] in told
    assert "The router says the same." in told


def executes(folder: Path, home: Path, **variables: str) -> Any:
    """Execute an unpacked notebook where it lies, as a platform does on a schedule; return it executed."""
    python = environment.of(folder / "requirements.txt")
    (notebook,) = folder.glob("*.ipynb")
    written = home / notebook.name
    subprocess.run(
        [python, "-m", "nbconvert", "--execute", "--to", "notebook", "--output", written, notebook.name],
        cwd=folder,
        env={"HOME": str(home), "RUNOFF_BOARD": str(home / "board"), "OMP_NUM_THREADS": "1", **variables},
        check=True,
    )
    return nbformat.read(written, as_version=4)
