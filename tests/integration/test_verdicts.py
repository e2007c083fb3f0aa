"""The verdict from a ledger: what counts, for whom, and when; through real services at the end."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from jsonschema import Draft202012Validator

from router import database, tables
from router.controllers import Evidence as Counted
from router.controllers import Judgement, Runner, Sums, errors_and_latency
from router.database import stamp
from router.entries import Entry
from router.experiment import Canary, Experiment, ExperimentError, read
from router.experiments import Current, Experiments, Following
from router.fold import SUMS, Fold
from router.guarding import Guards
from router.ledger import Ledger
from router.outcomes import Outcomes
from router.retention import prune
from router.verdicts import Verdicts, rules
from tests import shell
from tests.databases import BOTH, migrated
from tests.house import House, Reply
from tests.integration.test_ledger import aside, record
from tests.integration.test_routing import a_router_by
from verdict.evidence import Arm, Evidence
from verdict.moments import ClusteredMoments, Moments, Swings
from verdict.results import Verdict

NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)
TWO: list[dict[str, Any]] = [
    {"name": "A", "role": "champion", "url": "http://a", "weight": 50},
    {"name": "B", "url": "http://b", "weight": 50},
]


class Book:
    """A ledger that a test fills, and asks for a verdict."""

    def __init__(self, engine: sa.Engine, **document: Any) -> None:
        self.engine = engine
        self.experiments = Experiments(engine)
        self.experiments.take_in(_document(**document))
        self.ledger, self.reported, self.fold = Ledger(engine), Outcomes(engine), Fold(engine)
        self.random = random.Random(7)

    def asked(
        self,
        id_: str,
        p: float,
        y: int | None = None,
        *,
        hours_ago: float = 1,
        shadow: float | None = None,
        **more: Any,
    ) -> None:
        """Somebody asked, got p, and y came of it; a shadow may have said something else."""
        now = stamp(NOW - timedelta(hours=hours_ago))
        row = record(id_, time=now, experiment="e", prediction=p, **{"propensity": 0.5, **more})
        self.ledger.append(Entry([row], [aside(id_, "B", shadow)] if shadow is not None else ()))
        if y is not None:
            list(self.reported.append([{"id": id_, "outcome": y}]))

    def evidence(self, tag: str | None = "real", **more: Any) -> Evidence:
        current = self.experiments.current()
        assert current
        return Verdicts(self.engine, self.fold).evidence(current, tag, now=NOW, **more)

    def verdict(self, tag: str | None = "real", **more: Any) -> Verdict:
        current = self.experiments.current()
        assert current
        return Verdicts(self.engine, self.fold).verdict(current, tag, now=NOW, **more)[0]


def _document(**more: Any) -> Experiment:
    return read({"name": "e", "maturity": "0d", "variants": TWO} | more)


def test_a_split_is_judged_by_what_each_variant_said_of_its_own_requests(engine: sa.Engine) -> None:
    book = Book(engine)
    book.asked("1", 0.8, 1, variant="A")
    book.asked("2", 0.3, 0, variant="B")
    book.asked("3", 0.4, variant="B")
    book.asked("4", 0.9, 1, variant="B", tag="simulation")
    book.asked("5", 0.7, 1, variant="B", answered_by="A")
    book.ledger.append(
        Entry([record("6", time=stamp(NOW), experiment="e", variant="B", status=502, prediction=None)])
    )
    evidence = book.evidence()
    assert evidence.design == "split"
    a, b = evidence.arm("A"), evidence.arm("B")
    assert (a.requests, a.errors, a.mature, a.labelled, a.positives) == (1, 0, 1, 1, 1)
    assert (b.requests, b.errors, b.mature, b.labelled, b.positives) == (4, 2, 2, 1, 0)
    assert a.brier.n == 1
    assert [a.brier.total, a.brier.squares] == pytest.approx([0.04, 0.0016])
    assert b.calibration.total == pytest.approx(-0.3)
    assert (a.decisions.tp, b.decisions.tn) == (1, 1)  # type: ignore[union-attr]
    assert (a.positive_scores, b.negative_scores) == ({40: 1}, {15: 1})
    assert sum(b.latencies.values()) == 3
    [period] = evidence.periods
    assert period.weights == {"A": 0.5, "B": 0.5}
    assert (period.requests, period.assigned, period.served, period.labels, period.apart_failed) == (
        *({"A": 1, "B": 4}, {"A": 1, "B": 4}, {"A": 1, "B": 2}, {"A": 1, "B": 1}),
        {"A": 0, "B": 2},
    )
    assert book.evidence("simulation").arm("B").labelled == 1
    assert book.evidence(None).arm("B").labelled == 2


def seen(verdict: Verdict, name: str) -> str:
    """What a check of the verdict says, which is passed."""
    [check] = [each for each in verdict.checks if each.name == name]
    assert check.state == "passed", check
    return check.seen


def test_units_that_come_again_and_batches_count_once_among_what_chance_assigned(engine: sa.Engine) -> None:
    book = Book(engine)
    current = book.experiments.current()
    assert current
    units: Counter[str] = Counter()
    rows = []
    for unit in range(200):
        variant = current.assign(f"u{unit}").variant.name
        units[variant] += 1
        rows += [
            record(time=stamp(NOW), experiment="e", variant=variant, propensity=0.5, unit=f"u{unit}")
            for _ in range(book.random.randrange(1, 40))
        ]
    for number, (variant, length) in enumerate([("A", 500), ("B", 30)]):
        rows += [
            record(
                f"{number}/{row}", time=stamp(NOW), experiment="e", variant=variant, propensity=0.5
            )._replace(request_id=str(number), row=row)
            for row in range(length)
        ]
    book.ledger.append(Entry(rows))
    list(book.reported.append([{"id": each.id, "outcome": 1} for each in rows]))
    [period] = book.evidence().periods
    assert sum(period.requests.values()) == len(rows)
    once = {name: count + 1 for name, count in units.items()}
    assert period.assigned == period.served == period.labels == once
    verdict = book.verdict()
    expected = f"A {once['A']:,} where 101 are expected"
    assert expected in seen(verdict, "sample ratio")
    assert f"A {once['A']:,} where {once['A']:,} are expected" in seen(verdict, "label ratio")
    # A change that leaves the split and the rules as they are does not make them new ones.
    book.experiments.set(_document(timeout_seconds=1), expected=1, by="a test", reason="sooner")
    book.ledger.append(
        Entry(
            [each._replace(id=f"{each.id}-again", request_id="x", experiment_version=2) for each in rows[:50]]
        )
    )
    [period] = book.evidence().periods
    assert sum(period.requests.values()) == len(rows) + 50
    assert period.assigned == once


def test_a_batch_is_one_latency(engine: sa.Engine) -> None:
    book = Book(engine)
    for number in range(5):
        book.asked(f"b/{number}", 0.5, variant="A", request_id="b", row=number)
    assert sum(book.evidence().arm("A").latencies.values()) == 1


def test_shadows_and_replays_are_judged_by_pairs(engine: sa.Engine) -> None:
    book = Book(engine, mode="shadow")
    book.asked("1", 0.8, 1, shadow=0.5)
    book.asked("2", 0.4, 0, shadow=0.1)
    book.asked("3", 0.4, shadow=0.1)
    book.asked("4", 0.6, 0)
    failed = aside("4", "B")._replace(status=502, prediction=None)
    book.ledger.append(Entry(side_answers=[failed]))
    book.ledger.append(
        Entry(side_answers=[aside("2", "later", 0.2)._replace(kind="replay", latency_ms=None)])
    )
    evidence = book.evidence()
    assert evidence.design == "shadow"
    pairs, shadow = evidence.pair("B"), evidence.arm("B")
    assert (pairs.mature, pairs.labelled) == (3, 2)
    assert pairs.brier.total == pytest.approx((0.04 - 0.25) + (0.16 - 0.01))
    assert pairs.max_gap == pytest.approx(0.31)
    assert pairs.joint == {(16, 10, 1): 1, (8, 2, 0): 1}
    assert (shadow.requests, shadow.errors, shadow.labelled) == (4, 1, 2)
    assert shadow.brier.total == pytest.approx(0.25 + 0.01)
    assert (evidence.arm("A").requests, evidence.arm("A").labelled) == (4, 3)
    replayed = book.evidence(replay="later")
    assert replayed.challengers == ("later",)
    assert replayed.pair("later").labelled == 1
    assert replayed.pair("later").brier.total == pytest.approx(0.16 - 0.04)


def of_units(rows: list[tuple[str, float]]) -> ClusteredMoments:
    """The sums by unit of numbers, each of a unit."""
    units: dict[str, list[float]] = defaultdict(list)
    for unit, x in rows:
        units[unit].append(x)
    sums = [(len(each), sum(each)) for each in units.values()]
    return ClusteredMoments(
        *(len(sums), len(rows), sum(t for _, t in sums)),
        *(sum(n * n for n, _ in sums), sum(n * t for n, t in sums), sum(t * t for _, t in sums)),
    )


def sums(units: ClusteredMoments) -> dict[str, Any]:
    """Those by unit."""
    return {name: value for name, value in asdict(units).items() if name != "plain"}


def test_rows_of_a_unit_are_counted_together_in_whatever_order_they_become_known(engine: sa.Engine) -> None:
    book = Book(engine)
    rows = [(str(number), f"unit-{number % 7}", number / 40, number % 3 == 0) for number in range(40)]
    for id_, unit, p, _ in rows:
        # The last ones are the oldest.
        book.asked(id_, p, unit=unit, variant="AB"[int(unit[-1]) % 2], hours_ago=1 + int(id_))
    told = list(rows)
    book.random.shuffle(told)
    for id_, _, _, y in told:
        # One of them is corrected below.
        list(book.reported.append([{"id": id_, "outcome": int(y) if id_ != "11" else int(not y)}]))
        book.fold.catch_up()
    list(book.reported.append([{"id": "11", "outcome": int(rows[11][3]), "correction": True}]))

    def scores(variant: str) -> list[tuple[str, float]]:
        return [(unit, (p - y) ** 2) for _, unit, p, y in rows if "AB"[int(unit[-1]) % 2] == variant]

    def as_it_should_be(evidence: Evidence) -> None:
        for variant in "AB":
            found, wanted = evidence.arm(variant).by_unit["brier"], of_units(scores(variant))
            assert sums(found) == pytest.approx(sums(wanted))

    evidence = book.evidence()
    as_it_should_be(evidence)
    # Each row counts in its own hour: what has matured by then adds up.
    cells = [cell.arm("A").by_unit["brier"] for cell in evidence.history.values() if "A" in cell.arms]
    added = sum(cells[1:], cells[0])
    assert sums(added) == pytest.approx(sums(evidence.arm("A").by_unit["brier"]))
    # Made anew from the rows they are the same.
    assert book.fold.recount() == 0
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE repeats SET brier_product = brier_product + 1"))
    assert book.fold.recount() > 0
    as_it_should_be(book.evidence())


def variant_of(unit: str | None) -> str:
    """Who answers a unit, by its last digit."""
    return "B" if unit and unit[-1] in "13579" else "A"


def of_many(book: Book, rows: Sequence[tuple[str, str | None, float, int]], **more: Any) -> None:
    """Requests that came one after the other within some hours; their outcomes are known in another order."""
    told = [
        record(
            id_,
            time=stamp(NOW - timedelta(seconds=7 * number + 3600)),
            **{"experiment": "e", "unit": unit, "prediction": p, "propensity": 0.5, **more},
            variant=variant_of(unit),
        )
        for number, (id_, unit, p, _) in enumerate(rows)
    ]
    book.ledger.append(Entry([each._replace(request_id=each.id.partition("/")[0]) for each in told]))
    outcomes = [{"id": id_, "outcome": y} for id_, _, _, y in rows]
    book.random.shuffle(outcomes)
    for start in range(0, len(outcomes), 400):
        list(book.reported.append(outcomes[start : start + 400]))
        book.fold.catch_up()


def test_all_rows_of_a_unit_count_together_however_many_there_are(engine: sa.Engine) -> None:
    book = Book(engine)
    # Of each three rows one is of the same unit, and all the same comes of it.
    rows = [
        (f"{n}", "one" if n % 3 == 0 else f"u{n}", 0.3 if n % 3 else 0.9, int(n % 3 > 0 and n % 10 < 3))
        for n in range(1800)
    ]
    of_many(book, rows)
    evidence = book.evidence()
    found = evidence.arm("A").by_unit["brier"]
    mine = [row for row in rows if variant_of(row[1]) == "A"]
    assert sums(found) == pytest.approx(sums(of_units([(str(unit), (p - y) ** 2) for _, unit, p, y in mine])))
    assert found.rows2 == 600**2 + 600
    assert found.independent == pytest.approx(1200**2 / (600**2 + 600))
    # However many rows that are: one unit carries no verdict.
    verdict = book.verdict()
    assert verdict.decision == "keep collecting"
    assert "the outcomes of A count for 4 of the 100 units" in verdict.sentence
    # By weights they are the same, since all have the same.
    by_weights = evidence.arm("A").weighted["brier"]
    assert by_weights.independent == pytest.approx(found.independent)
    assert book.fold.recount() == 0
    # Each is corrected, in another order: as if it had been told so at first.
    told = [{"id": id_, "outcome": 1 - y, "correction": True} for id_, _, _, y in rows]
    book.random.shuffle(told)
    list(book.reported.append(told))
    corrected = of_units([(str(unit), (p - 1 + y) ** 2) for _, unit, p, y in mine])
    assert sums(book.evidence().arm("A").by_unit["brier"]) == pytest.approx(sums(corrected))
    assert book.fold.recount() == 0


def test_rows_of_a_batch_are_one_witness_and_profit_is_no_exception(engine: sa.Engine) -> None:
    costs = {"tp": 1, "fp": -2, "tn": 0.5, "fn": -4}
    book = Book(engine, decision={"metric": "profit", "costs": costs})
    rows = [(f"b{n // 50}/{n % 50}", None, (n % 7) / 7, int(n % (3 + n // 50 % 4) == 0)) for n in range(2000)]
    of_many(book, rows)
    of_many(book, [(f"s{n}", None, (n % 7) / 7, n % 2) for n in range(100)])
    arm, threshold = book.evidence().arm("A"), book.experiments.current()
    assert threshold
    decide = threshold.document.decision.threshold("A")
    rows += [(f"s{n}", None, (n % 7) / 7, n % 2) for n in range(100)]

    def profit(p: float, y: int) -> float:
        return costs[("fn", "tp")[p >= decide] if y else ("tn", "fp")[p >= decide]]

    by_batch = [(id_.partition("/")[0], p, y) for id_, _, p, y in rows]
    for metric, scores in (
        ("brier", [(batch, (p - y) ** 2) for batch, p, y in by_batch]),
        ("calibration", [(batch, y - p) for batch, p, y in by_batch]),
        ("profit", [(batch, profit(p, y)) for batch, p, y in by_batch]),
    ):
        assert sums(arm.by_unit[metric]) == pytest.approx(sums(of_units(scores))), metric
    assert arm.by_unit["brier"].units == 140
    assert arm.weighted["profit"].standard_error == pytest.approx(
        arm.by_unit["profit"].standard_error, rel=0.01
    )


def test_who_has_not_been_seen_since_rows_were_pruned_is_forgotten_and_others_are_not(
    engine: sa.Engine,
) -> None:
    book = Book(engine)

    def come(hours_ago: float, *units: str) -> None:
        for unit in units:
            book.asked(f"{unit}-{hours_ago}", 0.3, 1, hours_ago=hours_ago, unit=unit, variant="A")

    come(50, "gone", "stays")
    come(50.1, "gone", "stays")
    come(2, "stays", "new")
    book.fold.catch_up()
    before = sums(book.evidence().arm("A").by_unit["brier"])
    assert prune(engine, NOW - timedelta(hours=20)) == 4
    assert sums(book.evidence().arm("A").by_unit["brier"]) == before
    book.fold.recount()
    assert sums(book.evidence().arm("A").by_unit["brier"]) == before
    known = database.read(engine, sa.select(tables.clusters.c.cluster).distinct())
    assert sorted(each.cluster for each in known) == ["new", "stays"]
    come(1, "stays", "gone")
    found = book.evidence().arm("A").by_unit["brier"]
    # Whoever is forgotten is another one when it comes again.
    assert (found.units, found.rows, found.rows2) == (4, 8, 2**2 + 4**2 + 1 + 1)
    with engine.begin() as connection:
        today = stamp(NOW)[:10]
        connection.execute(tables.clusters.delete().where(tables.clusters.c.hour > today))
        more = tables.repeats.update().values(twins=tables.repeats.c.twins + 1)
        connection.execute(more.where(tables.repeats.c.hour > today))
    assert book.fold.recount() > 0
    assert sums(book.evidence().arm("A").by_unit["brier"]) == pytest.approx(sums(found))
    assert book.fold.recount() == 0


def taken_back(engine: sa.Engine, revision: str, kept: Sequence[sa.Table], **changed: dict[str, Any]) -> None:
    """Give a ledger the tables of an older release, and the rows of some of them, by what columns they had.

    Args:
        engine: the ledger's.
        revision: of the older release.
        kept: the tables whose rows stay.
        changed: by table, what is otherwise in each of its rows.
    """
    with engine.begin() as connection:
        rows = [[dict(row) for row in connection.execute(sa.select(each)).mappings()] for each in kept]
        tables.metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE alembic_version"))
    migrated(engine, revision)
    with engine.begin() as connection:
        for table, those in zip(kept, rows, strict=True):
            there = {each["name"] for each in sa.inspect(connection).get_columns(table.name)}
            lean: list[dict[str, Any]] = [
                {name: row[name] for name in there & row.keys()} | changed.get(table.name, {})
                for row in those
            ]
            if lean:
                columns = ", ".join(f'"{name}"' for name in lean[0])
                values = ", ".join(f":{name}" for name in lean[0])
                connection.execute(sa.text(f"INSERT INTO {table.name} ({columns}) VALUES ({values})"), lean)


@BOTH
def test_an_older_ledger_is_counted_again_for_its_units(engine: sa.Engine) -> None:
    book = Book(engine)
    for number in range(6):
        book.asked(str(number), 0.2 + number / 10, number % 2, unit=f"unit-{number % 3}", variant="A")
    before = book.evidence().arm("A")
    # As it was before there were sums by unit.
    taken_back(engine, "0001", [tables.experiments, tables.predictions, tables.outcomes])
    database.migrate(engine)
    after = book.evidence().arm("A")
    assert after.by_unit["brier"].units == 3
    assert flat_of(after) == pytest.approx(flat_of(before))


def flat_of(arm: Arm) -> list[float]:
    units, rows = arm.by_unit["brier"], arm.brier
    return [*sums(units).values(), rows.n, rows.total, rows.squares, *asdict(rows.swings).values()]


def test_units_that_come_again_and_again_are_as_many_as_they_are(engine: sa.Engine) -> None:
    def asked_by(units: int) -> Book:
        book = Book(engine, name=f"by-{units}")
        current = book.experiments.current()
        assert current
        # A unit is asked the same each time, and the same comes of it.
        became = [int(book.random.random() < 0.5) for _ in range(units)]
        more = {"experiment": f"by-{units}", "experiment_version": current.version, "propensity": 0.5}
        more["time"] = stamp(NOW - timedelta(hours=1))
        asked = [(f"{units}-{number}", number % units) for number in range(1200)]
        rows = [
            record(id_, variant="AB"[unit % 2], unit=str(unit), prediction=0.3 + unit % 3 / 5, **more)
            for id_, unit in asked
        ]
        book.ledger.append(Entry(rows))
        list(book.reported.append({"id": id_, "outcome": became[unit]} for id_, unit in asked))
        return book

    few = asked_by(60).verdict()
    assert few.decision == "keep collecting"
    assert "30 of the 100 units" in few.sentence
    many = asked_by(400)
    arm = many.evidence().arm("A")
    # Three rows each of 200 units say as much as 200 rows.
    for by_unit, by_row in ((arm.by_unit["brier"], arm.brier), (arm.by_unit["calibration"], arm.calibration)):
        assert by_unit.standard_error == pytest.approx(3**0.5 * by_row.standard_error, rel=0.01)
    assert "units" not in many.verdict().sentence


def test_models_that_say_the_same_are_seen_to(engine: sa.Engine) -> None:
    book = Book(engine, mode="shadow")
    for number in range(120):
        book.asked(str(number), score := 0.2 + number / 200, number % 2, shadow=score)
    verdict = book.verdict()
    assert verdict.decision == "equivalent"
    assert "the same score on all 120 pairs" in verdict.sentence


def test_outcomes_count_when_their_requests_have_matured(engine: sa.Engine) -> None:
    book = Book(engine, maturity="30d")
    book.asked("young", 0.8, 1, hours_ago=24)
    book.asked("old", 0.8, 1, hours_ago=24 * 31)
    book.asked("old and open", 0.8, hours_ago=24 * 31)
    arm = book.evidence().arm("A")
    assert (arm.requests, arm.mature, arm.labelled) == (3, 2, 1)
    matured = next(check for check in book.verdict().checks if check.name == "maturity")
    assert "2 of 3 requests have matured" in matured.seen
    assert matured.seen.endswith(
        "have an outcome (50%): A 67% and 50%, B 0% and 0%; 1 came or changed after the maturity "
        "(1 of 1 outcomes 1, 0 of 0 outcomes 0)"
    )


def told_at(engine: sa.Engine, id_: str, outcome: int, days_ago: float) -> None:
    """An outcome that was reported some days before NOW."""
    when = stamp(NOW - timedelta(days=days_ago))
    row = {"prediction_id": id_, "outcome": outcome, "time": when, "reported": when, "correction": False}
    with engine.begin() as connection:
        connection.execute(tables.outcomes.insert(), [row])


def test_outcomes_that_come_or_change_after_the_maturity_contradict_it(engine: sa.Engine) -> None:
    book = Book(engine, maturity="30d")
    for number in range(60):
        book.asked(f"{number}", 0.3, hours_ago=24 * 50, variant="AB"[number % 2], unit=f"u{number // 2}")
        told_at(engine, f"{number}", int(number % 3 == 0), 45)
    [check] = [each for each in book.verdict().checks if each.name == "maturity"]
    assert (check.state, "after the maturity" in check.seen) == ("passed", False)
    # What is told again as it was contradicts nothing; the hour of the request is to be over as well.
    told_at(engine, "1", 0, 5)
    told_at(engine, "2", 1, 20 - 0.5 / 24)
    evidence = book.evidence()
    assert (evidence.arm("A").late, evidence.arm("B").late) == (0, 0)
    for number in (4, 5, 7, 8):
        told_at(engine, f"{number}", 1, 10)
    evidence = book.evidence()
    assert (evidence.arm("A").late, evidence.arm("A").late_positives) == (2, 2)
    assert (evidence.arm("B").late, evidence.arm("B").late_positives) == (2, 2)
    verdict = book.verdict()
    assert verdict.decision == "don't trust"
    assert "outcomes come later than the maturity says" in verdict.sentence
    assert "4 came or changed after the maturity (4 of 25 outcomes 1, 0 of 35 outcomes 0)" in verdict.sentence
    assert book.fold.recount() == 0


def test_what_is_missing_is_counted_by_units_and_scores(engine: sa.Engine) -> None:
    book = Book(engine)
    for number in range(40):
        variant = "AB"[number % 2]
        known = 0 if number % 4 else None
        # Who comes again tells nothing new.
        for again in range(2):
            book.asked(f"{number}-{again}", 0.05, known, variant=variant, unit=f"u{number}")
    book.asked("one", 1.0, 1, variant="B", unit="u41")
    book.asked("saved", 0.95, variant="B", unit="u42", answered_by="A")
    [period] = book.evidence().periods
    assert period.missed == {"A": 0, "B": 1}
    assert period.scores == {("A", 0): 20, ("B", 0): 20, ("B", 9): 1}
    assert period.score_labels == {("A", 0): 10, ("B", 0): 20, ("B", 9): 1}
    assert book.fold.recount() == 0


def test_the_pairs_that_a_challenger_owes_are_those_that_the_champion_answered(engine: sa.Engine) -> None:
    book = Book(engine, mode="shadow")
    for number in range(30):
        book.asked(f"{number}", 0.3, number % 2, shadow=0.4, unit=f"u{number}")
    owed = [aside(f"{number}", "B")._replace(status=422, prediction=None) for number in range(30, 40)]
    for number, each in enumerate(owed, start=30):
        book.asked(f"{number}", 0.3, 1, unit=f"u{number}")
        book.ledger.append(Entry(side_answers=[each]))
    refused = record("no", time=stamp(NOW), experiment="e", status=422, prediction=None, unit="u99")
    book.ledger.append(Entry([refused], [aside("no", "B")._replace(status=422, prediction=None)]))
    evidence = book.evidence()
    pairs, shadow, champion = evidence.pair("B"), evidence.arm("B"), evidence.arm("A")
    assert (pairs.asked, pairs.missed, pairs.assigned, pairs.assigned_positives) == (40, 10, 30, 15)
    assert (champion.assigned_labels, champion.assigned_positives) == (40, 25)
    assert (shadow.requests, shadow.errors, champion.errors) == (41, 11, 1)
    [check] = [each for each in book.verdict().comparisons[0].checks if each.name == "pairs"]
    assert check.state == "failed"
    assert "missed 10 of 40 that A answered" in check.seen
    assert book.fold.recount() == 0


@pytest.mark.parametrize("pruned", [False, True])
def test_an_older_ledger_is_counted_again_for_what_is_missing(engine: sa.Engine, *, pruned: bool) -> None:
    book = Book(engine)
    for number in range(6):
        book.asked(f"{number}", 0.2, number % 2, variant="AB"[number % 2], unit=f"u{number}")
    before = book.evidence()
    kept = [tables.experiments, tables.predictions, tables.outcomes, *SUMS, tables.phases, tables.spans]
    folds = {"pruned": "2026-11-24T00"} if pruned else {}
    taken_back(engine, "0005", [*kept, tables.folds], folds=folds)
    database.migrate(engine)
    after = book.evidence()
    assert after.periods == before.periods
    assert after.arms == before.arms


def test_no_verdict_on_outcomes_is_trusted_before_a_maturity_is_declared(engine: sa.Engine) -> None:
    book = Book(engine, mode="shadow", maturity=None)
    for number in range(400):
        y = number % 2
        book.asked(f"{number}", 0.5, y if number >= 200 else None, shadow=0.5 + (y - 0.5) * (number % 7) / 10)
        if number == 100:
            early = book.verdict()
            assert early.decision == "keep collecting"
            assert {each.name: each.state for each in early.checks} == {
                "maturity": "not yet",
                "witnesses": "not yet",
            }
    refused = book.verdict()
    assert refused.decision == "don't trust"
    assert 'say after how long outcomes count, maturity = "30d", or "0d"' in refused.sentence
    current = book.experiments.current()
    assert current
    [doubt] = Guards(Verdicts(engine, book.fold)).doubts(current, "B")
    assert doubt.startswith("maturity: no maturity is declared")
    book.experiments.set(_document(mode="shadow"), expected=1, by="a test", reason="known at once")
    trusted = book.verdict()
    assert (trusted.decision, trusted.comparisons[0].n) == ("promote", 200)


def test_decisions_bring_what_the_costs_say(engine: sa.Engine) -> None:
    costs = {"tp": 0, "fp": -1, "tn": 1, "fn": -5}
    book = Book(
        engine, mode="shadow", decision={"metric": "profit", "costs": costs, "thresholds": {"B": 0.9}}
    )
    # Of calibrated scores a positive decision is worth it from 2/7 on.
    book.asked("1", 0.3, 1, shadow=0.8)
    book.asked("2", 0.3, 0, shadow=0.3)
    book.asked("3", 0.1, 0, shadow=0.95)
    evidence = book.evidence()
    assert evidence.arm("A").profit == Moments(3, 0 - 1 + 1, 2, Swings(37, 217, 1, 1))
    assert evidence.arm("B").profit == Moments(3, -5 + 1 - 1, 27, Swings(37, 217, 36, 216))
    # The other outcome of a row that they decide differently would make a difference of 7.
    swings = Swings(2 * 7**2, 2 * 7**3, 7**2, 7**3)
    assert evidence.pair("B").profit == Moments(3, 5 - 2 + 2, 25 + 4 + 4, swings)


def test_declared_parts_of_the_traffic_are_judged_by_themselves(engine: sa.Engine) -> None:
    declared = {
        "segments": [{"column": "EDUCATION"}, {"column": "LIMIT", "cuts": [1000, 2000]}],
        "sensitive": [{"column": "SEX"}],
    }
    book = Book(engine, mode="shadow", decision=declared)
    for number, limit in enumerate((999, 1000, 2000, 2001)):
        features = json.dumps({"EDUCATION": number % 2, "LIMIT": limit, "SEX": 1 + number % 2})
        book.asked(f"{number}", 0.5, number % 2, shadow=0.4, features=features)
    book.asked("bare", 0.5, 1, shadow=0.4, features=None)
    parts = book.evidence().segments
    assert {key: part.pair("B").labelled for key, part in parts.items()} == {
        ("EDUCATION", "0"): 2,
        ("EDUCATION", "1"): 2,
        ("EDUCATION", "unknown"): 1,
        ("LIMIT", "below 1000"): 1,
        ("LIMIT", "1000 to 2000"): 1,
        ("LIMIT", "2000 and more"): 2,
        ("LIMIT", "unknown"): 1,
        ("SEX", "1"): 2,
        ("SEX", "2"): 2,
        ("SEX", "unknown"): 1,
    }
    verdict = book.verdict()
    assert {(row.field, row.value) for row in verdict.comparisons[0].segments} == {
        key for key in parts if key[0] != "SEX"
    }
    assert {gap.field for gap in verdict.gaps} == {"SEX"}
    # Between two cuts there are three parts, and what is unknown; of codes those that were seen.
    current = book.experiments.current()
    assert current
    assert rules(current.document).parts == {"LIMIT": 4}


def test_where_weights_changed_rows_count_by_the_share_of_the_other_variant(engine: sa.Engine) -> None:
    book = Book(engine)
    current = book.experiments.ramp(0.8, "B", expected=1, by="a test", reason="more")
    assert current.allocation
    for number in range(10):
        book.asked(f"before-{number}", 0.6, 1, variant="AB"[number % 2])
        book.asked(f"after-{number}", 0.6, 1, variant="AB"[number >= 2], allocation=1)
    evidence = book.evidence()
    assert len(evidence.periods) == 2
    a, b = (evidence.arm(name).weighted["brier"] for name in "AB")
    assert (a.n, b.n) == (7, 13)
    assert [a.w, b.w] == pytest.approx([5 * 0.5 + 2 * 0.8, 5 * 0.5 + 8 * 0.2])


def test_a_verdict_is_judged_anew_where_something_is_new_and_only_there(engine: sa.Engine) -> None:
    book = Book(engine, maturity="2h")
    verdicts, current = Verdicts(engine, book.fold), book.experiments.current()
    assert current

    def labelled(now: datetime = NOW, tag: str | None = "real") -> tuple[Verdict, int]:
        verdict, evidence = verdicts.verdict(current, tag, now=now)
        return verdict, evidence.arm("A").labelled

    book.asked("1", 0.8, 1, variant="A", hours_ago=4)
    first, count = labelled()
    assert count == 1
    assert labelled(NOW + timedelta(minutes=5))[0] is first
    # Of other traffic, with another outcome, once more has matured, after a recount.
    assert labelled(tag="simulation")[1] == 0
    book.asked("2", 0.3, variant="A", hours_ago=3)
    book.asked("3", 0.3, 1, variant="A", hours_ago=1)
    list(book.reported.append([{"id": "2", "outcome": 1}]))
    assert labelled()[1] == 2
    assert labelled(NOW + timedelta(hours=2))[1] == 3
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE labels SET labelled = 7 WHERE hour <> ''"))
    book.asked("4", 0.3, variant="A")
    assert labelled()[1] == 14
    assert book.fold.recount()
    assert labelled()[1] == 2
    # However often other questions are asked, few answers are kept.
    for hour in range(30):
        labelled(NOW + timedelta(hours=hour))
    assert labelled()[1] == 2


def test_a_change_of_the_split_or_of_the_rules_begins_anew_and_another_does_not(engine: sa.Engine) -> None:
    book = Book(engine)
    book.asked("1", 0.8, 1)
    book.experiments.set(_document(timeout_seconds=1), expected=1, by="a test", reason="sooner")
    assert book.evidence().arm("A").labelled == 1
    anew: list[dict[str, Any]] = [{"decision": {"margin": 0.01}}, {"salt": "another"}]
    for version, more in enumerate(anew, start=2):
        book.experiments.set(_document(**more), expected=version, by="a test", reason="anew")
        assert book.evidence().arm("A").labelled == 0


@BOTH
def test_the_verdict_survives_pruning_and_a_recount(engine: sa.Engine) -> None:
    book = Book(engine, mode="shadow", decision={"segments": [{"column": "AGE"}]})
    for number in range(300):
        y = int(book.random.random() < 0.3)
        book.asked(f"{number}", 0.3, y, shadow=0.3 + 0.2 * (y - 0.3), hours_ago=number / 10)
    before = book.verdict()
    assert before.decision == "promote"
    assert before.variant == "B"
    assert before.comparisons[0].history
    assert len(before.comparisons[0].segments) == 1
    assert book.fold.recount() == 0
    assert prune(engine, NOW - timedelta(hours=5)) > 100
    assert book.verdict() == before
    assert book.fold.recount() == 0


def test_without_outcomes_nothing_is_decided_and_that_is_said(engine: sa.Engine) -> None:
    book = Book(engine)
    assert book.verdict().decision == "keep collecting"
    for number in range(4000):
        book.ledger.append(
            Entry(
                [
                    record(
                        f"{number}",
                        time=stamp(NOW),
                        experiment="e",
                        variant="AB"[number % 10 == 0],
                        propensity=0.5,
                    )
                ]
            )
        )
    verdict = book.verdict()
    assert verdict.decision == "don't trust"
    assert "do not follow the configured shares" in verdict.sentence


@pytest.mark.parametrize(
    ("decision", "where"),
    [
        ({"metric": "auc"}, "/decision/metric"),
        ({"metric": "profit"}, "/decision/costs"),
        ({"costs": {"tp": 0, "fp": 1, "tn": 0, "fn": -1}}, "/decision/costs"),
        ({"thresholds": {"C": 0.5}}, "/decision/thresholds"),
        ({"thresholds": {"A": 2}}, "/decision/thresholds/A"),
        ({"segments": [{"column": "AGE", "cuts": [30, 20]}]}, "/decision/segments/0/cuts"),
        ({"alpha": 0}, "/decision/alpha"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused_with_the_field(
    decision: dict[str, Any], where: str
) -> None:
    with pytest.raises(ExperimentError) as refused:
        _document(decision=decision)
    assert refused.value.errors[0].pointer == where


def reports(house: House, outcomes: dict[str, int]) -> None:
    lines = "".join(json.dumps({"id": id_, "outcome": y}) + "\n" for id_, y in outcomes.items())
    told = house.router.sends(lines.encode(), "/v1/outcomes", Content_Type="application/x-ndjson")
    assert told.status == 200


def ask_verdict(house: House, query: str = "", accept: str = "application/json") -> Reply:
    return house.router.fetches(f"/v1/verdict{query}", accept)


NO_SUMS = Counted(Canary(), 0.5, Sums(), Sums())
CANARY: dict[str, Any] = {
    "mode": "canary",
    "canary": {"steps": [0.5, 1], "min_requests": 100, "hold": "1s"},
    "guardrails": [{"name": "errors", "metric": "error-rate", "margin": 0.01}],
}


def canary(
    book: Book, requests: int, failing: float, turns: str = "AB", tag: str | None = None
) -> Current | None:
    """What the canary does after so many requests, of which the challenger fails at a share."""
    current = book.experiments.current()
    assert current
    rows = []
    for number in range(requests):
        variant = turns[number % len(turns)]
        fails = variant == "B" and book.random.random() < failing
        status: dict[str, Any] = {"status": 502, "prediction": None} if fails else {}
        rows.append(
            record(
                time=stamp(NOW),
                experiment="e",
                variant=variant,
                experiment_version=current.version,
                allocation=current.place.number,
                tag=tag,
                **status,
            )
        )
    book.ledger.append(Entry(rows))
    return canary_decides(book)


def test_a_guardrail_sends_a_canary_back_with_the_evidence_in_the_audit(engine: sa.Engine) -> None:
    book = Book(engine, **CANARY)
    assert canary(book, 10, 1.0) is None, "five requests are no evidence"
    back = canary(book, 70, 1.0)
    assert back
    assert back.weights == {"A": 1, "B": 0}
    [entry] = book.experiments.last(1)
    assert (entry.action, entry.by) == ("regress", "canary")
    assert "the guardrail errors is broken: worse by" in entry.reason
    [told] = entry.evidence["gate"]
    assert (told["state"], told["harm"]) == ("breached", 1)
    assert told["e_value"] >= told["bound"] == pytest.approx(2 / 0.05), "of two steps"


@pytest.mark.parametrize("guarded", [True, False], ids=["by guardrails", "by its gates"])
def test_a_canary_that_refuses_what_its_champion_takes_goes_back(engine: sa.Engine, *, guarded: bool) -> None:
    book = Book(engine, **(CANARY if guarded else {**CANARY, "guardrails": []}))
    current = book.experiments.current()
    assert current
    for number in range(400):
        refuses: dict[str, Any] = {"status": 422, "prediction": None} if number % 2 else {}
        # What nobody takes is no fault of a variant.
        nobody: dict[str, Any] = {"status": 422, "prediction": None} if number % 10 < 2 else {}
        row = record(
            time=stamp(NOW), experiment="e", variant="AB"[number % 2], unit=f"u{number}", **refuses | nobody
        )
        book.ledger.append(Entry([row]))
    counted = book.fold.counted("e", (1, 1), 0, NOW, None)
    assert (counted["A"].errors, counted["B"].errors) == (40, 200)
    assert (counted["A"].apart_failed, counted["B"].apart_failed, counted["B"].timed) == (40, 200, 0)
    assert (book.evidence().arm("B").errors, book.evidence().arm("A").errors) == (200, 40)
    [answers] = [each for each in book.verdict().checks if each.name == "answers"]
    assert "A 40 of 200 (20 %) and B 200 of 200 (100 %)" in answers.seen
    if guarded:
        back = canary_decides(book)
        assert back
        assert back.weights == {"A": 1, "B": 0}
    else:
        canary = Canary(steps=(0.5, 1), min_requests=100)
        told = errors_and_latency(Counted(canary, 0.5, counted["A"], counted["B"]))
        assert told.says == "regress"


def test_a_canary_whose_guardrails_do_not_object_goes_on_and_one_that_seems_worse_waits(
    engine: sa.Engine,
) -> None:
    book = Book(engine, **CANARY)
    assert canary(book, 150, 0.0) is None, "each has to have a hundred"
    on = canary(book, 2500, 0.0)
    assert on
    assert on.weights == {"A": 0, "B": 1}
    book.experiments.set(_document(**CANARY, salt="anew"), expected=1, by="a test", reason="anew")
    current = book.experiments.current()
    assert current
    for number in range(300):
        status: dict[str, Any] = {"status": 502, "prediction": None} if number % 40 == 1 else {}
        row = record(
            time=stamp(NOW), experiment="e", variant="AB"[number % 2], experiment_version=2, **status
        )
        book.ledger.append(Entry([row]))
    assert canary_decides(book) is None, "1 in 20 of B's fail, which is not sure yet, and too much to go on"


def judged(book: Book) -> Judgement:
    """What the canary's guardrails say now."""
    current = book.experiments.current()
    assert current
    counted = replace(NO_SUMS, share=current.weights["B"])
    return Guards(Verdicts(book.engine, book.fold)).gate(current)(counted)


def test_all_of_the_traffic_takes_guardrails_that_are_clear_and_a_step_before_that_does_not(
    engine: sa.Engine,
) -> None:
    book = Book(engine, **CANARY | {"canary": CANARY["canary"] | {"steps": [0.5, 0.75, 1]}})
    on = canary(book, 250, 0.0)
    assert on
    assert on.weights == {"A": 0.25, "B": 0.75}
    assert canary(book, 400, 0.0, "ABBB") is None
    told = judged(book)
    assert told.says == "hold"
    assert told.reason.startswith(
        "the guardrail errors is not clear yet: its margin is 0.01, it may be worse by 0.0"
    )
    assert [each["state"] for each in told.evidence] == ["watching"]
    whole = canary(book, 5000, 0.0, "ABBB")
    assert whole
    assert whole.weights == {"A": 0, "B": 1}


@pytest.mark.parametrize("steps", [[0.5, 1], [0.5, 0.75, 1]], ids=["to all", "a step on"])
def test_a_canary_goes_no_step_on_where_requests_do_not_follow_the_shares(
    engine: sa.Engine, steps: list[float]
) -> None:
    book = Book(engine, **CANARY | {"canary": CANARY["canary"] | {"steps": steps}})
    assert canary(book, 600, 0.0, "ABBB") is None
    told = judged(book)
    assert (told.says, told.reason) == (
        "hold",
        "the requests do not follow the configured shares "
        "(A 150 where 300 are expected, B 450 where 300 are expected)",
    )
    # It is sent back all the same where it breaks.
    back = canary(book, 200, 1.0, "ABBB")
    assert back
    assert back.weights == {"A": 1, "B": 0}


@pytest.mark.parametrize("guardrails", [CANARY["guardrails"], []], ids=["guardrails", "gates"])
def test_tagged_traffic_moves_a_canary_only_where_the_document_says_so(
    engine: sa.Engine, guardrails: list[dict[str, Any]]
) -> None:
    book = Book(engine, **CANARY | {"guardrails": guardrails})
    assert canary(book, 400, 1.0, tag="simulation") is None, "nobody real was failed"
    for version, traffic in enumerate(("load-test", "simulation", "all"), start=1):
        its = CANARY["canary"] | {"traffic": traffic}
        document = _document(**CANARY | {"guardrails": guardrails, "canary": its})
        book.experiments.set(document, expected=version, by="a test", reason=traffic)
        back = canary(book, 400, 1.0, tag="simulation")
        assert (back is not None) == (traffic != "load-test")
        assert back is None or back.weights == {"A": 1, "B": 0}


@pytest.mark.parametrize("guardrails", [CANARY["guardrails"], []], ids=["guardrails", "gates"])
@pytest.mark.parametrize("together", ["unit", "batch"])
def test_what_fails_together_sends_no_canary_back(
    engine: sa.Engine, together: str, guardrails: list[dict[str, Any]]
) -> None:
    strict = [each | {"margin": 0.001} for each in guardrails]
    gates = CANARY["canary"] | {"gates": {"max_error_rate_difference": 0.001}}
    book = Book(engine, **CANARY | {"guardrails": strict, "canary": gates})
    good = [record(time=stamp(NOW), experiment="e", variant="AB"[number % 2]) for number in range(600)]
    failed = [
        record(f"b/{row}", time=stamp(NOW), experiment="e", variant="B", status=502, prediction=None)
        for row in range(100)
    ]
    alike: list[dict[str, Any]] = [
        {"unit": "u"} if together == "unit" else {"request_id": "b", "row": row} for row in range(100)
    ]
    book.ledger.append(Entry([*good, *(row._replace(**its) for row, its in zip(failed, alike, strict=True))]))
    assert canary_decides(book) is None, "somebody's requests, or a batch, that it cannot answer"
    book.ledger.append(Entry([row._replace(id=f"alone-{row.id}") for row in failed]))
    back = canary_decides(book)
    assert back
    assert back.weights == {"A": 1, "B": 0}


def test_a_canary_waits_for_a_guardrail_that_knows_nothing_yet(engine: sa.Engine) -> None:
    scores = {"name": "scores", "metric": "brier", "margin": 0.0}
    book = Book(engine, **CANARY | {"guardrails": [scores]})
    assert canary(book, 1000, 0.0) is None, "of no request is the outcome known"
    told = judged(book)
    assert (told.says, told.reason) == ("hold", "the guardrail scores has too little to go by yet")


def test_a_canary_sent_back_while_held_goes_back_once_it_is_resumed(engine: sa.Engine) -> None:
    book = Book(engine, **CANARY)
    book.experiments.hold(expected=1, by="ada", reason="let me see")
    assert canary(book, 80, 1.0) is None
    book.experiments.resume(expected=1, by="ada", reason="seen")
    back = canary_decides(book)
    assert back
    assert back.weights == {"A": 1, "B": 0}, "by what was recorded while it was held"


def canary_decides(book: Book) -> Current | None:
    """What the canary does now."""
    following = Following(book.experiments)
    verdicts = Verdicts(book.engine, book.fold)
    runner = Runner(
        book.experiments,
        following,
        lambda current, versions, allocation: book.fold.counted(
            "e", versions, allocation, NOW, current.document.moving
        ),
        Guards(verdicts).gate,
    )
    return runner.decide(datetime.now(UTC) + timedelta(hours=1))


def test_a_dry_run_moves_nothing(engine: sa.Engine) -> None:
    dry = CANARY["canary"] | {"dry_run": True}
    book = Book(engine, **CANARY | {"canary": dry})
    assert canary(book, 300, 1.0) is None
    assert [entry.action for entry in book.experiments.last(5)] == ["configure"]


@pytest.mark.slow
def test_what_the_evidence_has_doubts_of_is_promoted_only_by_name(
    board: Path, models: House, tmp_path: Path
) -> None:
    with a_router_by(tmp_path, board, models, 'mode = "shadow"') as house:

        def promotes(variant: str, **more: str) -> Reply:
            body = {"variant": variant, "reason": "so", **more}
            return house.router.sends(json.dumps(body).encode(), "/v1/experiment/promote", If_Match='"1"')

        refused = promotes("B")
        assert refused.status == 409
        assert "maturity: none of 0 requests has matured" in refused.json["detail"]
        assert promotes("B", override="A").status == 409
        assert promotes("B", override="B").status == 200


def test_the_evidence_has_doubts_of_a_challenger_that_surely_is_worse(engine: sa.Engine) -> None:
    book = Book(engine, mode="shadow", decision={"planned_outcomes": 200})
    rows, asides, outcomes = [], [], []
    for number in range(200):
        row = record(
            str(number), time=stamp(NOW), experiment="e", propensity=1.0, prediction=0.1 + 0.8 * (number % 2)
        )
        rows.append(row)
        asides.append(aside(str(number), "B", 0.3 + 0.001 * number))
        outcomes.append({"id": str(number), "outcome": number % 2})
    book.ledger.append(Entry(rows, asides))
    list(book.reported.append(outcomes))
    current = book.experiments.current()
    assert current
    [doubt] = Guards(Verdicts(book.engine, book.fold)).doubts(current, "B")
    assert doubt.startswith("Keep A: B's Brier score is higher by")


def test_the_evidence_has_doubts_of_a_challenger_that_is_not_known_to_be_as_good(engine: sa.Engine) -> None:
    def doubts(book: Book) -> list[str]:
        current = book.experiments.current()
        assert current
        return Guards(Verdicts(book.engine, book.fold)).doubts(current, "B")

    book = Book(engine, mode="shadow")
    book.asked("0", 0.2, 0, shadow=0.21)
    [doubt] = doubts(book)
    assert doubt == "1 of the 100 pairs of A and B that a decision takes at least are there"

    def asked(version: int) -> None:
        for number in range(1, 151):
            # Mostly as good, now and then better or worse.
            shadow = 0.4 + number % 3 / 100
            book.asked(f"{version}/{number}", 0.4, number % 2, shadow=shadow, experiment_version=version)

    asked(1)
    [doubt] = doubts(book)
    assert doubt.startswith("B may be worse than A in Brier score by 0.0")
    assert doubt.endswith(", where 0 is allowed")
    document = _document(mode="shadow", decision={"margin": 0.05})
    book.experiments.set(document, expected=1, by="a test", reason="a margin")
    assert len(doubts(book)) > 1, "by these rules nothing was recorded yet"
    asked(2)
    assert book.verdict().decision != "promote"
    assert doubts(book) == [], "it is surely within the margin"


def test_a_split_in_which_the_challenger_seems_worse_and_not_surely_has_doubts(engine: sa.Engine) -> None:
    book = Book(engine)
    for number in range(300):
        p = 0.3 if number % 2 == 0 else 0.32
        book.asked(f"{number}", p, int(number % 10 < 2), variant="AB"[number % 2])
    assert book.verdict().decision == "keep collecting"
    current = book.experiments.current()
    assert current
    [doubt] = Guards(Verdicts(engine, book.fold)).doubts(current, "B")
    assert doubt.startswith("B may be worse than A in Brier score by 0.")


def test_the_verdict_is_told_over_rest_and_from_a_shell(
    board: Path, models: House, tmp_path: Path, clients: list[dict[str, int]]
) -> None:
    with a_router_by(tmp_path, board, models, 'mode = "shadow"') as house:
        nothing = house.router.gets("/v1/verdict").json
        assert (nothing["decision"], nothing["requests"], nothing["labelled"]) == ("keep collecting", 0, 0)
        ids = [house.router.asks(client).headers["X-Request-ID"] for client in clients[:60]]
        reports(house, {id_: number % 2 for number, id_ in enumerate(ids)})
        tagged = house.router.asks(clients[0], X_Traffic_Tag="simulation")
        reports(house, {tagged.headers["X-Request-ID"]: 1})

        reply = house.router.gets("/v1/verdict")
        told = reply.json
        # What the shadow scored besides is no further request.
        assert (told["requests"], told["labelled"]) == (60, 60)
        assert [each["requests"] for each in told["traffic"]] == [{"A": 60, "B": 60}]
        assert [sum(bin_["count"] for bin_ in each["bins"]) for each in told["reliability"]] == [60, 60]
        assert told["other_traffic"] == {"simulation": 1}
        assert told["tag"] == "real"
        document = house.router.gets("/openapi.json").json
        schema = document["paths"]["/v1/verdict"]["get"]["responses"]["200"]["content"]["application/json"]
        Draft202012Validator({**schema["schema"], "components": document["components"]}).validate(told)
        page = ask_verdict(house, "?tag=all", "text/markdown").body.decode()
        assert page.startswith(f"**{told['sentence']}**") or page.startswith("**Keep collecting")
        assert "| Brier score" in page
        assert "| A | B | A − B |" in page
        assert ask_verdict(house, "?replay=nobody").status == 404
        assert ask_verdict(house, "?tag=NO").status == 400

        def runoff(*words: object) -> str:
            done = shell.runoff(*words, RUNOFF_ROUTER_URL=house.router_url)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert json.loads(runoff("verdict", "--json"))["labelled"] == told["labelled"]
        assert told["sentence"][:40] in runoff("verdict", "--markdown")
        assert "Brier score" in runoff("verdict")

        figure = tmp_path / "plan.html"
        planned = json.loads(runoff("plan", "--difference", "0.01", "--figure", figure, "--json"))
        schema = document["paths"]["/v1/plan"]["get"]["responses"]["200"]["content"]["application/json"]
        Draft202012Validator({**schema["schema"], "components": document["components"]}).validate(planned)
        by_design = {each["design"]: each for each in planned["designs"]}
        assert set(by_design) == {"shadow", "split", "bandit"}
        assert by_design["shadow"]["fixed"] < by_design["split"]["fixed"]
        assert by_design["split"]["fixed"] == pytest.approx(4 * 7.849 * planned["variance"] / 1e-4, rel=1e-3)
        assert planned["labelled"] == 1
        assert "plotly" in figure.read_text(encoding="utf-8")
        plan = runoff("plan", "--difference", "0.01")
        assert "outcomes for one look" in plan
        times = by_design["split"]["fixed"] / by_design["shadow"]["fixed"]
        assert f"A split takes {times:,.3g} times as many outcomes as shadow." in plan
        wrong = house.router.gets("/v1/plan?difference=0").json
        assert (wrong["status"], wrong["errors"][0]["pointer"]) == (400, "/difference")
        assert (
            "there are no requests yet" in house.router.gets("/v1/plan?difference=1&tag=none").json["detail"]
        )
        given = "difference=0.01&tag=none&per_day=1000&labelled=0.5&variance=0.04"
        assert [each["design"] for each in house.router.gets(f"/v1/plan?{given}").json["designs"]] == [
            *("split", "bandit"),
        ]
