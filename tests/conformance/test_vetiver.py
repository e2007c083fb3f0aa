"""vetiver, in an environment that has nothing of ours: it serves our pins, and we serve its pins."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from data import credit
from launch import environment
from runoff.evaluators import TOLERANCE
from runoff.prediction import create_app
from runoff.store import Store
from tests.house import House, run_in

pytestmark = pytest.mark.slow

LOCK = Path(__file__).with_name("requirements-vetiver.txt")

LOAD = """
import json, sys
import pandas as pd
from pins import board_folder
from vetiver import VetiverModel

board, name, clients = sys.argv[1], sys.argv[2], json.load(sys.stdin)
model = VetiverModel.from_pin(board_folder(board, allow_pickle_read=True), name)
print(json.dumps({
    "probabilities": model.model.predict_proba(pd.DataFrame(clients))[:, 1].tolist(),
    "columns": list(model.prototype.model_json_schema()["properties"]),
    "version": model.metadata.version,
    "python": model.metadata.python_version,
    "packages": model.metadata.required_pkgs,
    "record": model.metadata.user["runoff"]["record"]["algorithm"],
}))
"""

ASK = """
import json, sys
import pandas as pd
from vetiver import predict

frame = pd.DataFrame(json.load(sys.stdin))
print(json.dumps(predict(sys.argv[1], frame)["predict"].tolist()))
"""

WRITE = """
import json, sys
import pandas as pd
from pins import board_folder
from sklearn.linear_model import LogisticRegression
from vetiver import VetiverModel, vetiver_pin_write

X, y = pd.DataFrame({"b": [3, 1, 4, 1, 5, 9], "a": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}), [0, 0, 1, 0, 1, 1]
model = LogisticRegression().fit(X, y)
board = board_folder(sys.argv[1], allow_pickle_read=True)
vetiver_pin_write(board, VetiverModel(model, "theirs", prototype_data=X))
print(json.dumps(model.predict_proba(X)[:, 1].tolist()))
"""


@pytest.fixture(scope="module")
def their_python() -> Path:
    """The interpreter of an environment with vetiver."""
    return environment.of(LOCK)


def test_their_environment_has_nothing_of_ours(their_python: Path) -> None:
    script = "import importlib.util as u, json; print(json.dumps(u.find_spec('runoff') is None))"
    assert run_in(their_python, script) is True


@pytest.mark.parametrize("name", ["model-a", "model-b"])
def test_vetiver_loads_our_pin_and_its_model_gives_the_same_probabilities(
    their_python: Path, board: Path, store: Store, clients: list[dict[str, int]], name: str
) -> None:
    theirs = run_in(their_python, LOAD, board, name, given=clients)
    ours = store.load(name)
    offline = ours.probabilities(pd.DataFrame(clients)).tolist()
    assert theirs["probabilities"] == pytest.approx(offline, rel=0, abs=TOLERANCE)
    assert theirs["columns"] == list(credit.FEATURES)
    assert theirs["version"] == ours.version.id
    assert theirs["packages"] == ["scikit-learn"]
    assert theirs["python"] == list(sys.version_info[:2])
    assert theirs["record"] == ours.version.record["algorithm"]


def test_the_client_of_vetiver_gets_probabilities_from_our_service(
    their_python: Path, house: House, store: Store, clients: list[dict[str, int]]
) -> None:
    theirs = run_in(their_python, ASK, f"{house.model_a.url}/predict", given=clients[:20])
    assert theirs == store.load("model-a").probabilities(pd.DataFrame(clients[:20])).tolist()


def test_the_client_of_vetiver_may_ask_the_router_instead(
    their_python: Path, house: House, store: Store, clients: list[dict[str, int]]
) -> None:
    theirs = run_in(their_python, ASK, f"{house.router_url}/predict", given=clients[:20])
    frame = pd.DataFrame(clients[:20])
    assert theirs in [store.load(name).probabilities(frame).tolist() for name in ("model-a", "model-b")]


def test_our_service_serves_a_pin_that_vetiver_wrote(their_python: Path, tmp_path: Path) -> None:
    theirs = run_in(their_python, WRITE, tmp_path)
    client = create_app("theirs", store=Store.open(tmp_path)).test_client()
    rows = [{"b": b, "a": a} for b, a in zip([3, 1, 4, 1, 5, 9], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], strict=True)]
    assert client.post("/predict", json=rows).json == {"predict": pytest.approx(theirs)}
    # The order of their columns is not that of the alphabet, and is kept.
    assert client.get("/prototype").get_json()["required"] == ["b", "a"]
    assert client.get("/metadata").get_json()["required_pkgs"] == ["scikit-learn"]
    assert client.post("/predict", json={"b": "three", "a": 0.1}).status_code == 422
