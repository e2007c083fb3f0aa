"""The notebooks: worth publishing, and what they store is what they say."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from sklearn.base import clone

from data import credit
from notebooks import train
from notebooks.executed import OnCell
from runoff import evaluation
from runoff.evaluators import TOLERANCE
from runoff.store import Store
from tests.house import running

NAMES = list(train.NOTEBOOKS)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_in_the_repository_carries_no_output_and_has_parameters(name: str) -> None:
    notebook = nbformat.read(train.NOTEBOOKS[name], as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert notebook.cells[0].source.startswith("# Model")


@pytest.mark.parametrize("name", NAMES)
def test_the_executed_notebook_is_kept_with_the_version_and_shows_its_result_first(
    store: Store, name: str
) -> None:
    version = store.version(name)
    executed = nbformat.reads(store.open_attached(version, "notebook.ipynb").decode(), as_version=4)
    first_output = next(cell for cell in executed.cells if cell.cell_type == "code").outputs[0]
    area = version.record["metrics"]["roc_auc"]["value"]
    assert "ROC AUC" in first_output.data["text/html"]
    assert f"{area:.3f}" in first_output.data["text/html"]
    streams = [o for c in executed.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    assert streams == [], "a published notebook shows no warnings"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_the_notebook_loads_nothing_from_elsewhere(store: Store, name: str) -> None:
    page = store.open_attached(store.version(name), "notebook.html").decode()
    loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(https?:[^"]+)"', page)
    assert loaded == []
    assert page.count("plotly.js v") == 1, "the script that draws the figures stands in the page once"


@pytest.mark.parametrize("name", NAMES)
def test_the_record_says_how_the_version_came_to_be(store: Store, name: str) -> None:
    record = store.version(name).record
    assert record["data_digest"] == credit.digest(credit.load())
    assert record["code_digest"] == train.code_digest(name)
    assert record["library"] == "scikit-learn"
    assert record["parameters"]
    assert record["versions"]["scikit-learn"]
    assert record["seconds"] > 0
    assert set(record["metrics"]) == {"roc_auc", "pr_auc", "brier", "log_loss"}
    for figures in record["metrics"].values():
        assert figures["lower"] <= figures["value"] <= figures["upper"]
    assert set(record["importance"]) == set(credit.FEATURES)


@pytest.mark.parametrize("name", NAMES)
def test_the_metrics_on_record_are_those_of_the_stored_model_on_held_out_clients(
    store: Store, name: str
) -> None:
    _, held_out = credit.split(credit.load())
    p = store.load(name).probabilities(held_out[list(credit.FEATURES)])
    told = {metric: figures["value"] for metric, figures in store.version(name).record["metrics"].items()}
    assert told == pytest.approx(evaluation.measure(held_out[credit.TARGET], p))
    assert told["roc_auc"] > 0.7, "a model that ranks no better than this was not trained on these data"


@pytest.mark.filterwarnings("ignore:Bins whose width are too small")
@pytest.mark.parametrize("name", NAMES)
def test_no_held_out_client_was_trained_on(store: Store, name: str) -> None:
    training, held_out = credit.split(credit.load())
    X = held_out[list(credit.FEATURES)]
    stored = store.load(name)
    # Fitting is deterministic: one client more, one column more, or another seed, would show.
    refitted = clone(store.estimator(name)).fit(training[list(credit.FEATURES)], training[credit.TARGET])
    assert refitted.predict_proba(X)[:, 1] == pytest.approx(stored.probabilities(X), abs=TOLERANCE)
    assert stored.version.prototype.names == credit.FEATURES
    record = store.version(name).record
    assert record["rows"] == {"training": len(training), "held_out": len(held_out)}
    assert not set(training["ID"]) & set(held_out["ID"])
    # What the prototype saw is what stands in the training rows, and in no held-out row beyond them.
    for feature in store.version(name).prototype.features:
        if feature.seen.values is not None:
            assert set(feature.seen.values) == set(training[feature.name])
        else:
            seen = (feature.seen.minimum, feature.seen.maximum)
            assert seen == (training[feature.name].min(), training[feature.name].max())


def test_what_is_trained_already_is_not_trained_again(board: Path) -> None:
    def on_cell(name: str, done: int) -> None:
        pytest.fail(f"{name} was executed again, up to cell {done}")

    before = [version.id for name in NAMES for version in Store.open(board).versions(name)]
    assert [version.id for version in train.train(str(board), on_cell)] == before


def test_other_data_are_trained_on_anew(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credit.load().head(2000).to_csv(tmp_path / "fewer.csv", index=False)
    store = Store.open(board)
    assert train.trained(store, "model-a") is not None
    monkeypatch.setenv("CREDIT_DATA", str(tmp_path / "fewer.csv"))
    assert train.trained(store, "model-a") is None
    # The default data have their version still.
    monkeypatch.delenv("CREDIT_DATA")
    assert train.trained(store, "model-a") == store.version("model-a")


def test_only_the_newest_version_counts_as_trained_since_it_is_the_one_served(
    store: Store, tmp_path: Path
) -> None:
    fits = store.load("model-a")
    own = Store.open(tmp_path)
    for record in (fits.version.record, {**fits.version.record, "data_digest": "of other clients"}):
        own.write("model-a", store.estimator("model-a"), prototype=fits.version.prototype, record=record)
    assert train.trained(own, "model-a") is None


def failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, on_cell: OnCell) -> str:
    """What is said of a notebook whose last cell, of the given source, fails."""
    broken = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("board = None", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(source),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    path = tmp_path / "broken.ipynb"
    nbformat.write(broken, path)
    monkeypatch.setitem(train.NOTEBOOKS, "model-a", path)
    with pytest.raises(train.TrainingFailed) as raised:
        train.train_one(Store.open(tmp_path / "board"), "model-a", on_cell)
    return str(raised.value)


def test_a_notebook_that_fails_is_named_with_its_cell_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    said = failure(tmp_path, monkeypatch, "reason = 'no such luck'\nraise ValueError(reason)", told.append)
    # The third: the runner has put the cell with its parameters before it.
    assert "broken.ipynb failed in code cell 3" in said
    assert "reason = 'no such luck'\nValueError: no such luck\n" in said
    kept = Path(said.rsplit(" ", 1)[-1])
    assert "no such luck" in kept.read_text()
    assert max(told) == train.count_cells("model-a"), "progress ends at the count it was announced with"


def test_a_relative_path_of_the_data_means_the_same_file_to_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credit.load().head(1000).to_csv(tmp_path / "fewer.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CREDIT_DATA", "fewer.csv")
    source = "from data import credit\nraise ValueError(f'{len(credit.load())} clients')"
    assert "ValueError: 1000 clients" in failure(tmp_path, monkeypatch, source, lambda _: None)


def test_a_newer_version_is_served_after_a_restart(
    store: Store, client: dict[str, int], tmp_path: Path
) -> None:
    """The store at work: what a notebook writes is what a service loads next."""
    own = Store.open(tmp_path / "board")
    written = own.write(
        "model-a",
        store.estimator("model-b"),
        prototype=store.version("model-b").prototype,
        record={"algorithm": "B"},
    )
    model = own.load("model-a", written.id)
    with running(tmp_path / "var", tmp_path / "board", "model_a") as house:
        reply = house.model_a.asks(client)
        assert reply.json["version"] == written.id
        assert reply.prediction == float(model.probabilities(pd.DataFrame([client]))[0])


def test_a_notebook_that_posit_connect_runs_knows_where_it_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CONNECT_CONTENT_GUID", raising=False)
    assert evaluation.published_at() is None
    monkeypatch.setenv("CONNECT_SERVER", "https://connect.example.com/")
    monkeypatch.setenv("CONNECT_CONTENT_GUID", "0f5a")
    assert evaluation.published_at() == "https://connect.example.com/content/0f5a/"
