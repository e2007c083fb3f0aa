"""The verdict from the ledger's rows is the one from its sums; and the notebook that is published with it."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from notebooks import ledger
from router import exports
from router.database import stamp
from router.entries import Entry
from router.verdicts import Verdicts
from tests.test_ledger import aside, record
from tests.test_verdicts import NOW, Book, _document, engine
from verdict.decision import judge
from verdict.evidence import Evidence

__all__ = ["engine"]

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


def fill(book: Book, count: int, *, shadow: bool, allocation: int = 0, share: float = 0.5) -> None:
    """Requests of many hours with all that may happen to them."""
    draw: random.Random = book.random
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
        }
        if draw.random() < 0.05:
            more["propensity"] = None
        if draw.random() < 0.05 and not shadow:
            more["answered_by"] = "A"
        id_ = f"{allocation}-{number}"
        known = y if draw.random() < 0.8 else None
        hours = draw.uniform(0, 100)
        said = other if shadow and draw.random() < 0.9 else None
        if draw.random() < 0.03:
            book.ledger.append(
                Entry(
                    [
                        record(
                            id_,
                            time=stamp(NOW - timedelta(hours=hours)),
                            experiment="e",
                            **more | {"status": 502, "prediction": None},
                        )
                    ]
                )
            )
            continue
        book.asked(id_, p, known, hours_ago=hours, shadow=said, **more)
        if shadow and said is None:
            failed = aside(id_, "B")._replace(status=502, prediction=None)
            book.ledger.append(Entry(side_answers=[failed]))


@pytest.mark.parametrize("form", ["csv", "ndjson", "parquet"])
def test_pairs_in_rows_are_those_in_sums(engine: sa.Engine, tmp_path: Path, form: str) -> None:
    book = Book(engine, mode="shadow", maturity="30h", decision=PARTS)
    fill(book, 400, shadow=True)
    book.experiments.set(
        _document(mode="shadow", maturity="20h", decision=PARTS | COSTS), expected=1, by="a", reason="costs"
    )
    assert_same(book, from_rows(book, tmp_path, form))
    assert_same(book, from_rows(book, tmp_path, form, tag="all"), None)
    assert_same(book, from_rows(book, tmp_path, form, tag="simulation"), "simulation")


@pytest.mark.parametrize("mode", ["split", "bandit"])
def test_arms_in_rows_are_those_in_sums_also_where_shares_changed(
    engine: sa.Engine, tmp_path: Path, mode: str
) -> None:
    guard = {"name": "errors", "metric": "error-rate", "margin": 0.01}
    book = Book(engine, mode=mode, decision=PARTS | COSTS, guardrails=[guard])
    fill(book, 400, shadow=False)
    assert_same(book, from_rows(book, tmp_path, "csv"))
    current = book.experiments.current()
    assert current
    book.experiments.allocate(current, {"A": 1, "B": 4}, "update", by="a test", reason="more")
    fill(book, 400, shadow=False, allocation=1, share=0.8)
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
