"""The verdict from the ledger's rows is the one from its sums; and the notebook that is published with it."""

from __future__ import annotations

import html as html_library
import json
import random
import re
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import nbformat
import pytest
import sqlalchemy as sa

from notebooks import ledger
from notebooks.decide import NOTEBOOK, decide
from notebooks.executed import NotebookFailed
from router import exports
from router.database import stamp
from router.entries import Entry
from router.verdicts import Verdicts
from tests.house import House, until
from tests.integration.test_ledger import aside, record
from tests.integration.test_routing import a_router_by
from tests.integration.test_verdicts import NOW, Book, _document, reports
from verdict import report
from verdict.decision import judge
from verdict.evidence import Evidence

PARTS = {
    "segments": [{"column": "EDUCATION"}, {"column": "LIMIT", "cuts": [1000, 2000]}],
    "sensitive": [{"column": "SEX"}, {"column": "LIMIT", "cuts": [1500]}],
}
COSTS = {"metric": "profit", "costs": {"tp": 0, "fp": -1, "tn": 1, "fn": -5}, "thresholds": {"B": 0.4}}


def from_rows(book: Book, folder: Path, form: str, tag: str = "real", **more: Any) -> Evidence:
    """The evidence that the notebook makes of the export and of what the router says, both as files."""
    media_type, ending = {
        "csv": ("text/csv", "csv"),
        "ndjson": ("application/x-ndjson", "ndjson"),
        "parquet": ("application/vnd.apache.parquet", "parquet"),
    }[form]
    book.fold.catch_up()
    (folder / f"rows.{ending}").write_bytes(b"".join(exports.FORMS[media_type](book.ledger.pages(0))))
    current = book.experiments.current()
    assert current
    declared = Verdicts(book.engine, book.fold).declared(current, **more)
    told = {"as_of": NOW.isoformat(), "tag": tag, "declared": declared.to_dict()}
    (folder / "verdict.json").write_text(json.dumps(told))
    said = ledger.said(str(folder / "verdict.json"), None, "of the file")
    assert said.declared == declared
    return ledger.counted(ledger.rows(str(folder / f"rows.{ending}"), None, said), said)


def assert_same(book: Book, mine: Evidence, tag: str | None = "real", **more: Any) -> None:
    """What the rows say is what the sums say, to the last figure of the verdict."""
    theirs = book.evidence(tag, **more)
    current = book.experiments.current()
    assert current
    rules = Verdicts(book.engine, book.fold).declared(current, **more).rules
    assert theirs.history
    told, wanted = (flat(judge(each, rules).to_dict()) for each in (mine, theirs))
    assert told.keys() == wanted.keys()
    for place, value in wanted.items():
        near = pytest.approx(value, rel=1e-7, abs=1e-10) if isinstance(value, float) else value
        assert told[place] == near, place


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """The leaves of nested JSON, by where they are."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for name, each in items for k, v in flat(each, f"{place}/{name}").items()}
    return {place: value}


def fill(
    book: Book, count: int, *, shadow: bool, allocation: int = 0, share: float = 0.5, units: int = 0
) -> None:
    """Requests of many hours with all that may happen to them; half of them of so many units, if any."""
    draw: random.Random = book.random
    rows, beside, became = [], [], []  # type: list[Any], list[Any], list[Any]
    for number in range(count):
        y = int(draw.random() < 0.3)
        p, other = (min(max(0.3 + 0.3 * (y - 0.3) + draw.gauss(0, 0.15), 0), 1) for _ in range(2))
        variant = "A" if shadow or draw.random() >= share else "B"
        features = {"EDUCATION": draw.choice([1, 2, 2.5, None]), "LIMIT": draw.choice([999, 1500, 3000])}
        features["SEX"] = draw.choice([1, 2])
        more: dict[str, Any] = {
            "variant": variant,
            "propensity": 1.0 if shadow else share if variant == "B" else 1 - share,
            "allocation": allocation,
            "features": json.dumps(features) if draw.random() < 0.9 else None,
            "latency_ms": draw.lognormvariate(1, 0.5),
            "tag": draw.choice([None, None, None, "simulation"]),
            "unit": f"unit-{draw.randrange(units)}" if units and draw.random() < 0.5 else None,
        }
        if draw.random() < 0.05:
            more["propensity"] = None
        if draw.random() < 0.05 and not shadow:
            more["answered_by"] = "A"
        id_ = f"{allocation}-{number}"
        if draw.random() < 0.1:
            more |= {"status": 502, "prediction": None}
        if number % 10 < 3:
            batch = f"{allocation}-batch-{number // 10}"
            id_, more["request_id"], more["row"] = f"{batch}/{number % 10}", batch, number % 10
        time = stamp(NOW - timedelta(hours=draw.uniform(0, 100)))
        rows.append(record(id_, time=time, experiment="e", **{"prediction": p, **more}))
        if shadow:
            failed = aside(id_, "B")._replace(status=502, prediction=None)
            beside.append(aside(id_, "B", other) if draw.random() < 0.9 else failed)
        if draw.random() < 0.8:
            became.append({"id": id_, "outcome": y})
    book.ledger.append(Entry(rows, beside))
    list(book.reported.append(became))
    none_came_late(book)


def none_came_late(book: Book) -> None:
    """Let all outcomes have been reported at once: an export does not tell when they were."""
    asked = "(SELECT time FROM predictions WHERE predictions.id = outcomes.prediction_id)"
    with book.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE outcomes SET reported = {asked}"))


@pytest.mark.parametrize(
    ("form", "tag", "units"),
    [
        ("csv", "real", 0),
        pytest.param("ndjson", "all", 60, marks=pytest.mark.slow),
        pytest.param("parquet", "simulation", 20, marks=pytest.mark.slow),
    ],
)
def test_pairs_in_rows_are_those_in_sums(
    engine: sa.Engine, tmp_path: Path, form: str, tag: str, units: int
) -> None:
    fields: dict[str, Any] = {"mode": "shadow", "maturity": "20h", "decision": PARTS | COSTS}
    book = Book(engine, **fields)
    fill(book, 400, shadow=True, units=units)
    sooner = _document(**fields, timeout_seconds=1)
    book.experiments.set(sooner, expected=1, by="a", reason="sooner")
    mine = from_rows(book, tmp_path, form, tag)
    # Some come in batches, which are clusters as units are.
    assert mine.pair("B").by_unit
    assert_same(book, mine, None if tag == "all" else tag)


@pytest.mark.parametrize(
    ("mode", "units"),
    [
        pytest.param("split", 0, marks=pytest.mark.slow),
        ("split", 80),
        pytest.param("bandit", 80, marks=pytest.mark.slow),
    ],
)
def test_arms_in_rows_are_those_in_sums_also_where_shares_changed(
    engine: sa.Engine, tmp_path: Path, mode: str, units: int
) -> None:
    guard = {"name": "errors", "metric": "error-rate", "margin": 0.01}
    book = Book(engine, mode=mode, decision=PARTS | COSTS, guardrails=[guard])
    fill(book, 400, shadow=False, units=units)
    mine = from_rows(book, tmp_path, "csv")
    assert mine.arm("A").by_unit
    assert_same(book, mine)
    current = book.experiments.current()
    assert current
    book.experiments.allocate(current, {"A": 1, "B": 4}, "update", by="a test", reason="more")
    fill(book, 400, shadow=False, allocation=1, share=0.8, units=units)
    mine = from_rows(book, tmp_path, "ndjson")
    assert mine.arm("B").weighted
    assert_same(book, mine)


def test_a_replay_in_rows_is_that_in_sums(engine: sa.Engine, tmp_path: Path) -> None:
    book = Book(engine)
    fill(book, 200, shadow=False)
    again = [
        aside(row["id"], "later", 0.2)._replace(kind="replay", latency_ms=None)
        for row in book.ledger.page(0, 200)
    ]
    book.ledger.append(Entry(side_answers=again))
    assert_same(book, from_rows(book, tmp_path, "parquet", replay="later"), replay="later")


@pytest.mark.slow
def test_of_a_unit_that_asks_a_lot_the_notebook_says_what_the_router_does(
    engine: sa.Engine, tmp_path: Path
) -> None:
    book = Book(engine)
    rows, became = [], []
    # So many others that the one unit does not count for most of what is known of A.
    for number in range(12_000):
        unit, variant = ("one", "A") if number < 510 else (f"{number}", "AB"[number % 2])
        more = {"time": stamp(NOW - timedelta(seconds=number)), "variant": variant, "unit": unit}
        p = 0.2 + number % 5 / 10
        rows.append(record(str(number), experiment="e", prediction=p, propensity=0.5, **more))
        became.append({"id": str(number), "outcome": int(number % 3 == 0)})
    book.ledger.append(Entry(rows))
    list(book.reported.append(became))
    none_came_late(book)
    assert_same(book, from_rows(book, tmp_path, "csv"))
    kept = tmp_path / "verdict.json"
    told = json.loads(kept.read_text())
    kept.write_text(json.dumps(book.verdict().to_dict() | told))
    files = {"export_file": str(tmp_path / "rows.csv"), "verdict_file": str(kept)}
    executed = decide(tmp_path / "decide.html", **files)
    assert "The router says the same." in told_by(executed)


def told_by(executed: Any) -> str:
    """What the first cell of the executed notebook shows."""
    first = next(cell for cell in executed.cells if cell.cell_type == "code")
    return str(first.outputs[0].data["text/markdown"])


def assert_agrees(executed: Any, told: dict[str, Any], page: Path) -> None:
    """The executed notebook says what the router says, and is fit to be published."""
    assert told_by(executed).startswith(f"## {told['sentence']}\n")
    assert "The router says the same." in told_by(executed)
    shown = executed.cells[-1].outputs[0].data["text/html"]
    [compared] = told["comparisons"]
    row = next(row for row in compared["rows"] if row["metric"] == told["metric"])
    figures = (row["difference"], row["interval"]["lower"], row["interval"]["upper"], row["e_value"])
    # Both ends of an interval that nobody may believe yet are the same dash.
    for text, times in Counter(map(report.number, figures)).items():
        assert shown.count(f"<td>{text}</td>") == 2 * times
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert [each for each in outputs if each.output_type == "stream"] == [], "it shows no warnings"
    html = page.read_text(encoding="utf-8")
    assert html_text(told["sentence"]) in html
    assert re.findall(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(https?:[^"]+)"', html) == []


def html_text(text: str) -> str:
    return html_library.escape(text, quote=False)


def asks_and_reports(house: House, clients: list[dict[str, int]]) -> None:
    """All clients ask, and of most of them the outcome becomes known."""
    ids = [house.router.asks(client).headers["X-Request-ID"] for client in clients]
    reports(house, {id_: int(n % 4 == 0) for n, id_ in enumerate(ids) if n % 10})


def fetched(house: House, accept: str, path: str) -> bytes:
    reply = house.router.fetches(path, accept)
    assert reply.status == 200
    return reply.body


def test_a_split_is_decided_from_the_router_as_the_router_decides_it(
    board: Path, models: House, tmp_path: Path, clients: list[dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_router_by(tmp_path, board, models, "") as house:
        asks_and_reports(house, clients)
        # Another kind of traffic counts only where it is asked for.
        house.router.asks(clients[0], X_Traffic_Tag="simulation")
        monkeypatch.setenv("RUNOFF_ROUTER_URL", house.router_url)
        executed = decide(tmp_path / "decide.html")
        told = house.router.gets("/v1/verdict").json
    assert (told["design"], told["labelled"]) == ("split", 270)
    assert_agrees(executed, told, tmp_path / "decide.html")


@pytest.mark.slow
def test_shadows_are_decided_from_kept_files_without_a_router(
    board: Path, models: House, tmp_path: Path, clients: list[dict[str, int]]
) -> None:
    costs = "[decision.costs]\ntp = 0.0\nfp = -1.0\ntn = 1.0\nfn = -4.0\n"
    with a_router_by(tmp_path, board, models, f'mode = "shadow"\n{costs}') as house:
        asks_and_reports(house, clients)
        until(
            lambda: house.router.gets("/v1/verdict").json["comparisons"][0]["n"] == 270,
            "all shadows are judged",
        )
        kept = {"rows.parquet": ("/v1/predictions", "application/vnd.apache.parquet")}
        kept["verdict.json"] = ("/v1/verdict?declared=true", "application/json")
        for name, (path, accept) in kept.items():
            (tmp_path / name).write_bytes(fetched(house, accept, path))
        first = json.loads(fetched(house, "application/x-ndjson", "/v1/predictions").splitlines()[0])
        assert (
            first["side_answers"] == house.router.gets(f"/v1/predictions/{first['id']}").json["side_answers"]
        )
    told = json.loads((tmp_path / "verdict.json").read_text())
    files = {"export_file": str(tmp_path / "rows.parquet"), "verdict_file": str(tmp_path / "verdict.json")}
    executed = decide(tmp_path / "decide.html", **files)
    assert_agrees(executed, told, tmp_path / "decide.html")
    drawn = [each for c in executed.cells for each in c.get("outputs", []) if "plotly" in str(each.data)]
    assert len(drawn) == 4, "the interval, the reliability, the money, the latencies"


def test_a_notebook_in_the_repository_carries_no_output_and_has_parameters() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1


@pytest.mark.slow
def test_what_cannot_be_read_is_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text('{"sentence": "Keep A."}')
    with pytest.raises(ledger.NotReadable, match=r"verdict.json is no verdict with what was declared"):
        ledger.said(str(tmp_path / "verdict.json"), None, "real")
    with pytest.raises(ledger.NotReadable, match=r"127.0.0.1:9/v1/verdict.*does not answer"):
        ledger.said(None, "http://127.0.0.1:9", "real")
    with pytest.raises(NotebookFailed, match=r"NotReadable: .*nothing.json cannot be read: No such file"):
        decide(tmp_path / "decide.html", verdict_file=str(tmp_path / "nothing.json"))


@pytest.mark.slow
def test_an_export_that_lacks_a_column_is_told_so(engine: sa.Engine, tmp_path: Path) -> None:
    book = Book(engine)
    fill(book, 20, shadow=False)
    assert_same(book, from_rows(book, tmp_path, "csv"))
    said = ledger.said(str(tmp_path / "verdict.json"), None, "real")
    (tmp_path / "rows.csv").write_text("time,variant\n2026-11-23T14:05:00Z,A\n")
    with pytest.raises(ledger.NotReadable, match="it lacks experiment, answered_by, tag"):
        ledger.rows(str(tmp_path / "rows.csv"), None, said)
    with pytest.raises(ledger.NotReadable, match=r"an export ends in .csv, .ndjson or .parquet"):
        ledger.rows(str(tmp_path / "verdict.json"), None, said)
