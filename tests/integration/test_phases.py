"""Phases: evidence is of the models, the split and the rules that were in force, and of no others."""

from __future__ import annotations

import json
import random
import threading
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from router import database
from router.database import stamp
from router.entries import Entry, Record, SideAnswer
from router.experiment import Experiment, read
from router.experiments import Current, Experiments
from router.fold import Fold
from router.ledger import Ledger
from router.outcomes import Outcomes
from router.phases_api import History
from router.retention import prune
from router.tables import spans
from router.verdicts import Verdicts
from tests import databases
from tests.databases import BOTH, migrated
from tests.integration.test_ledger import record
from verdict.evidence import Evidence
from verdict.results import Verdict

NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)
WHO = {"by": "ada", "reason": "so"}
TWO: list[dict[str, Any]] = [
    {"name": "A", "role": "champion", "url": "http://a", "weight": 50},
    {"name": "B", "url": "http://b", "weight": 50},
]
# Digests of models, as a service tells them.
A1, B1, B2 = (f"{name:0<64}" for name in ("a1", "b1", "b2"))


class Story:
    """An experiment that goes on by what a test says, and its ledger."""

    def __init__(self, engine: sa.Engine, **document: Any) -> None:
        self.engine = engine
        self.experiments = Experiments(engine)
        self.fields = {"name": "e", "maturity": "0d", "variants": TWO, **document}
        self.experiments.take_in(self.document)
        self.ledger, self.reported, self.fold = Ledger(engine), Outcomes(engine), Fold(engine)
        self.verdicts = Verdicts(engine, self.fold)
        self.history = History(self.experiments, self.fold)
        self.digests: dict[str, str | None] = {"A": A1, "B": B1}
        self._ids = count(1)

    @property
    def document(self) -> Experiment:
        return read(self.fields)

    @property
    def current(self) -> Current:
        found = self.experiments.current()
        assert found
        return found

    def sets(self, **fields: Any) -> Current:
        """Change the document."""
        self.fields |= fields
        return self.experiments.set(self.document, expected=self.current.version, **WHO)

    def asked(self, variant: str, p: float = 0.3, y: int | None = 0, **more: Any) -> str:
        """Somebody asked, a variant answered, and became y."""
        [id_] = self.all_asked([(variant, p, y)], **more)
        return id_

    def all_asked(self, those: list[tuple[str, float, int | None]], **more: Any) -> list[str]:
        """Many asked, as one did: a variant answered each with a p, and it became a y."""
        rows = [self._row(variant, p, more) for variant, p, _ in those]
        self.ledger.append(Entry(rows))
        ids = [row.id for row in rows]
        became = [{"id": id_, "outcome": y} for id_, (*_, y) in zip(ids, those, strict=True) if y is not None]
        list(self.reported.append(became))
        return ids

    def _row(self, variant: str, p: float, more: dict[str, Any]) -> Record:
        id_ = f"r{next(self._ids)}"
        version, allocation = self.current.place
        told = {"model": f"model-{variant.lower()}", "version": "v1", "digest": self.digests[variant]}
        usual = {
            **told,
            "time": stamp(NOW - timedelta(hours=1)),
            "experiment": self.current.document.name,
            "experiment_version": version,
            "allocation": allocation,
            "propensity": self.current.weights[variant],
            "prediction": p,
        }
        return record(id_, variant=variant, **{**usual, **more})

    def shadowed(self, id_: str, p: float, digest: str) -> None:
        said = (id_, "shadow", "B", stamp(NOW), "model-b", "v1", digest, p, 1.0, 200, None)
        self.ledger.append(Entry(side_answers=[SideAnswer(*said)]))

    def both(self, times: int = 1) -> None:
        """Both variants are asked so many times."""
        self.all_asked([("A", 0.3, 0), ("B", 0.3, 0)] * times)

    def evidence(self, phase: int | None = None) -> Evidence:
        current, which = self.verdicts.of_phase(phase) if phase else (self.current, None)
        return self.verdicts.evidence(current, "real", phase=which, now=NOW)

    def verdict(self, phase: int | None = None, **more: Any) -> Verdict:
        current, which = self.verdicts.of_phase(phase) if phase else (self.current, None)
        return self.verdicts.verdict(current, "real", phase=which, now=NOW, **more)[0]

    def labelled(self, phase: int | None = None) -> tuple[int, int]:
        """How many outcomes of each variant count in a phase."""
        evidence = self.evidence(phase)
        return evidence.arm("A").labelled, evidence.arm("B").labelled

    @property
    def phase(self) -> int:
        """The one in force, 0 where there is none."""
        found = self.verdicts.in_force(self.current)
        return found.number if found else 0

    @property
    def numbers(self) -> list[int]:
        self.fold.catch_up()
        return [each.number for each in self.fold.phases.all()]


@pytest.fixture
def story(engine: sa.Engine) -> Story:
    return Story(engine)


def test_a_release_begins_a_phase_and_a_rollback_goes_on_with_the_one_before(story: Story) -> None:
    assert (story.phase, story.labelled()) == (0, (0, 0))
    story.both(3)
    assert (story.phase, story.labelled()) == (1, (3, 3))
    story.digests["B"] = B2
    # Nobody has been answered by the other model yet.
    story.asked("A")
    assert (story.phase, story.labelled()) == (1, (4, 3))
    story.asked("B")
    story.asked("A")
    assert (story.phase, story.labelled()) == (2, (1, 1))
    assert story.labelled(1) == (4, 3), "what was recorded before stays with its phase"
    story.digests["B"] = B1
    story.asked("B")
    story.asked("A")
    assert (story.phase, story.labelled()) == (1, (5, 4))
    assert story.labelled(2) == (1, 1)
    assert story.numbers == [1, 2]
    told = story.history.listed(story.current, None)
    assert told["in_force"] == 1
    assert [(each["because"], each["requests"], each["outcomes"]) for each in told["phases"]] == [
        (["the first one"], 9, 9),
        (["B serves v1 instead of v1"], 2, 2),
    ]
    assert told["phases"][1]["models"]["B"]["digest"] == B2


def test_outcomes_count_for_the_phase_of_their_request_whenever_they_come(story: Story) -> None:
    early = [story.asked("A", y=None), story.asked("B", y=None)]
    story.both()
    story.fold.catch_up()
    story.digests["B"] = B2
    story.asked("B")
    story.both()
    assert story.labelled() == (1, 2)
    list(story.reported.append([{"id": each, "outcome": 1} for each in early]))
    assert story.labelled() == (1, 2)
    assert story.labelled(1) == (2, 2)


def test_rules_that_are_declared_again_begin_a_phase_at_half_of_the_risk(story: Story) -> None:
    story.both(2)
    assert story.verdict().alpha == 0.05
    for number, metric in enumerate(("log-loss", "brier"), start=1):
        story.sets(decision={"metric": metric, "margin": number / 1000})
        story.both(number)
        assert (story.phase, story.labelled()) == (1 + number, (number, number))
        assert story.verdict().alpha == 0.05 / 2**number
    assert "3rd rules for this split" in story.verdict().risk
    # To take them back is no further attempt.
    story.sets(decision={})
    story.both()
    assert (story.phase, story.labelled(), story.verdict().alpha) == (1, (3, 3), 0.05)
    assert [story.verdict(phase).metric for phase in (1, 2, 3)] == ["brier", "log-loss", "brier"]
    assert [story.verdict(phase).alpha for phase in (1, 2, 3)] == [0.05, 0.025, 0.0125]
    assert [each["because"] for each in story.history.listed(story.current, None)["phases"]] == [
        ["the first one"],
        ["other rules of decision"],
        ["other rules of decision"],
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"decision": {"metric": "log-loss"}},
        {"decision": {"margin": 0.01}},
        {"decision": {"alpha": 0.01}},
        {"decision": {"planned_outcomes": 500}},
        {"decision": {"max_gap": 0.5}},
        {"decision": {"selective": True}},
        {"decision": {"thresholds": {"A": 0.3}}},
        {"decision": {"costs": {"tp": 0, "fp": -1, "tn": 1, "fn": -5}}},
        {"guardrails": [{"name": "errors", "metric": "error-rate", "margin": 0.01}]},
        {"maturity": "1h"},
        {"salt": "another"},
        {"mode": "shadow"},
        {"variants": [TWO[0], {**TWO[1], "url": "http://c"}]},
    ],
)
def test_what_decides_or_splits_otherwise_begins_a_phase_and_is_taken_back(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    story = Story(database.connect(databases.ledger("sqlite", tmp_path)))
    story.both(2)
    before = {name: story.fields.get(name) for name in fields}
    told = story.history.foreseen(story.current, read(story.fields | fields))
    assert (told["leaves"], told["outcomes"], told["enters"]) == (1, 4, None)
    assert told["says"].startswith("4 outcomes stay with phase 1, and a new phase begins.")
    story.sets(**fields)
    story.asked("A")
    assert story.phase == 2
    back = story.fields | before
    document = read({name: value for name, value in back.items() if value is not None})
    told = story.history.foreseen(story.current, document)
    assert (told["leaves"], told["enters"], told["enters_outcomes"]) == (2, 1, 4)
    assert told["says"] == "1 outcome stays with phase 2, and phase 1 goes on, with its 4 outcomes."
    story.experiments.set(document, expected=story.current.version, **WHO)
    story.fields = {name: value for name, value in back.items() if value is not None}
    story.both()
    assert (story.phase, story.labelled()) == (1, (3, 3))


@pytest.mark.parametrize(
    "fields",
    [
        {"timeout_seconds": 1.0},
        {"privacy": {"omitted": ["SEX"]}},
        {"decision": {"segments": [{"column": "SEX"}], "sensitive": [{"column": "SEX"}]}},
        {"decision": {"thresholds": {"A": 0.5}}},
    ],
)
def test_what_neither_decides_nor_splits_begins_none(tmp_path: Path, fields: dict[str, Any]) -> None:
    story = Story(database.connect(databases.ledger("sqlite", tmp_path)))
    story.both(2)
    told = story.history.foreseen(story.current, read(story.fields | fields))
    assert (told["leaves"], told["enters"]) == (None, 1)
    assert told["says"] == "Phase 1 goes on, with its 4 outcomes."
    story.sets(**fields)
    story.both()
    assert (story.phase, story.labelled(), story.verdict().alpha) == (1, (3, 3), 0.05)


def test_a_maturity_that_is_declared_for_the_first_time_lets_all_of_it_count(engine: sa.Engine) -> None:
    story = Story(engine, maturity=None)
    story.both()
    story.sets(maturity="1h")
    story.both()
    assert (story.phase, story.current.series, story.current.attempt) == (1, 1, 1)
    story.sets(maturity="2h")
    assert (story.current.series, story.current.attempt) == (3, 2)
    # To declare none in between does not let one choose among maturities.
    story.sets(maturity=None)
    assert story.current.series == 3
    story.sets(maturity="3h")
    assert (story.current.series, story.current.attempt) == (5, 3)


def test_weights_that_move_stay_within_a_phase_and_what_moves_them_goes_by_it(engine: sa.Engine) -> None:
    story = Story(engine, mode="canary", canary={"steps": [0.5, 1.0]})
    story.both(2)
    story.experiments.ramp(0.2, expected=1, **WHO)
    story.both(2)
    story.experiments.pause(expected=1, **WHO)
    story.experiments.resume(expected=1, **WHO)
    story.both()
    assert (story.phase, story.labelled(), story.numbers) == (1, (5, 5), [1])
    story.digests["B"] = B2
    story.asked("B")
    story.both()
    assert story.phase == 2
    step = story.verdicts.evidence(story.current, "real", step=story.current.step, now=NOW)
    assert step.arm("B").requests == 2, "a canary is judged by the model that it would promote"
    counted = story.fold.counted("e", (1, 1), 0, NOW, "real", phase=2)
    assert counted["B"].requests == 2


def test_who_has_not_answered_yet_or_fails_is_no_other_model(story: Story) -> None:
    story.asked("B", status=502, prediction=None, digest=None, model=None, version=None, y=None)
    story.asked("B")
    story.fold.catch_up()
    story.asked("A")
    story.asked("A", status=422, prediction=None, digest=None, model=None, version=None, y=None)
    story.asked("A", answered_by="B", digest=B1)
    story.both()
    assert story.numbers == [1]
    assert dict(story.fold.phases.all()[0].alike) == {"A": A1, "B": B1}


def test_a_service_without_digests_is_known_by_its_version_and_one_that_tells_nothing_is_one_model(
    story: Story,
) -> None:
    story.digests["B"] = None
    story.both()
    story.asked("A")
    assert story.numbers == [1]
    story.asked("B", version="v2")
    assert (story.phase, story.labelled()) == (2, (0, 1))
    for _ in range(2):
        story.asked("B", model=None, version=None)
    assert (story.phase, story.numbers) == (3, [1, 2, 3])


def test_rows_of_both_models_that_come_in_turns_count_by_what_answered(story: Story) -> None:
    rng = random.Random(3)
    story.both()
    seen = {B1: 1, B2: 0}
    for _ in range(60):
        variant, digest = rng.choice("AB"), rng.choice([B1, B2])
        story.asked(variant, digest=digest if variant == "B" else A1)
        if variant == "B":
            seen[digest] += 1
        if rng.random() < 0.2:
            story.fold.catch_up()
    assert story.numbers == [1, 2]
    assert story.labelled(1)[1] == seen[B1]
    assert story.labelled(2)[1] == seen[B2]
    assert sum(story.labelled(phase)[0] for phase in (1, 2)) == 62 - sum(seen.values())


def test_what_is_recorded_late_counts_for_the_version_that_it_was_assigned_by(story: Story) -> None:
    story.both(2)
    story.sets(salt="another")
    story.both()
    story.fold.catch_up()
    story.asked("A", experiment_version=1)
    story.asked("B", experiment_version=1)
    assert (story.phase, story.labelled(), story.labelled(1)) == (2, (1, 1), (3, 3))


def test_whoever_served_under_the_version_before_serves_on_and_another_service_does_not(
    story: Story,
) -> None:
    story.both()
    story.digests["B"] = B2
    story.asked("B")
    story.both()
    story.sets(salt="another")
    # From its first row on: nobody waits for B to answer.
    story.asked("A")
    assert story.phase == 3
    assert dict(story.fold.phases.all()[2].alike) == {"A": A1, "B": B2}
    story.sets(variants=[TWO[0], {**TWO[1], "url": "http://c"}])
    story.asked("A")
    story.asked("B", digest=B1)
    story.both()
    assert story.numbers == [1, 2, 3, 4, 5]
    assert dict(story.fold.phases.all()[3].alike) == {"A": A1, "B": B1}


def test_pairs_count_by_the_models_that_gave_both_answers(engine: sa.Engine) -> None:
    story = Story(engine, mode="shadow")
    rows = [story.asked("A", propensity=1.0) for _ in range(6)]
    for row in rows[:3]:
        story.shadowed(row, 0.4, B1)
    assert story.evidence().pair("B").labelled == 3
    # These were recorded, and counted, when nobody knew who would answer beside them.
    for row in rows[3:5]:
        story.shadowed(row, 0.5, B2)
    story.shadowed(rows[5], 0.4, B1)
    more = [story.asked("A", propensity=1.0) for _ in range(2)]
    for row in more:
        story.shadowed(row, 0.5, B2)
    story.fold.catch_up()
    assert story.numbers == [1, 2]
    found = {phase: story.evidence(phase) for phase in (1, 2)}
    assert {phase: each.pair("B").labelled for phase, each in found.items()} == {1: 4, 2: 4}
    assert {phase: each.arm("B").requests for phase, each in found.items()} == {1: 4, 2: 4}
    told = {row["id"]: row for page in story.ledger.pages(0) for row in page}
    assert [told[row]["side_answers"][0]["phase"] for row in rows] == [1, 1, 1, 2, 2, 1]
    assert {told[row]["phase"] for row in more} == {2}


def test_a_model_that_serves_both_variants_is_compared_with_nothing(story: Story) -> None:
    story.digests["B"] = A1
    rng = random.Random(1)
    story.all_asked([(name, p, rng.randrange(2)) for name, p in [("A", 0.9), ("B", 0.1)] * 150])
    verdict = story.verdict()
    assert verdict.decision == "equivalent"
    assert verdict.sentence == "A and B are the same model, so nothing is compared."
    [compared] = verdict.comparisons
    assert (compared.rows, compared.history, compared.n) == ((), (), 0)
    # Names say nothing: what tells no digest may be anything.
    story.digests = {"A": None, "B": None}
    story.asked("A", model="m")
    story.asked("B", model="m")
    assert "same model" not in story.verdict().sentence


def test_replays_share_the_risk_as_challengers_do_and_stay_apart(story: Story) -> None:
    rows = [story.asked("A", y=number % 2) for number in range(4)]
    story.both()

    def replayed(name: str) -> None:
        said = [
            SideAnswer(row, "replay", name, stamp(NOW), "model-a", "v0", B2, 0.5, None, 200, None)
            for row in rows
        ]
        story.ledger.append(Entry(side_answers=said))

    before = story.labelled()
    replayed("first")
    assert story.verdict(replay="first").alpha == 0.05
    replayed("second")
    verdict = story.verdict(replay="first")
    assert (verdict.alpha, verdict.comparisons[0].n) == (0.025, 4)
    assert "2 replay sets share the declared alpha" in verdict.risk
    assert (story.labelled(), story.numbers, story.verdict().alpha) == (before, [1], 0.05)


def test_guardrails_spend_a_risk_of_their_own_and_the_total_is_said(engine: sa.Engine) -> None:
    story = Story(engine, guardrails=[{"name": "errors", "metric": "error-rate", "margin": 0.01}])
    story.both()
    assert "at most 5 %" in story.verdict().risk
    assert "both together are at most 10 %" in story.verdict().risk


def test_a_unit_is_assigned_anew_in_each_phase(story: Story) -> None:
    for _ in range(3):
        story.asked("B", unit="u")
    story.digests["B"] = B2
    for _ in range(2):
        story.asked("B", unit="u")
    for phase, rows in ((1, 3), (2, 2)):
        [period] = story.evidence(phase).periods
        assert (period.requests["B"], period.assigned["B"]) == (rows, 1)
        assert story.evidence(phase).arm("B").by_unit["brier"].units == 1


@BOTH
def test_many_that_count_at_once_know_the_same_phases(story: Story, engine: sa.Engine) -> None:
    folds = [Fold(engine) for _ in range(3)]
    stop = threading.Event()
    trouble: list[BaseException] = []

    def count_on(fold: Fold) -> None:
        try:
            while not stop.wait(0.001):
                fold.catch_up()
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=count_on, args=(fold,)) for fold in folds]
    for thread in threads:
        thread.start()
    for digest in (B1, B2, B1, B2):
        story.digests["B"] = digest
        for _ in range(5):
            story.asked("B")
            story.asked("A")
    stop.set()
    for thread in threads:
        thread.join()
    assert trouble == []
    assert story.numbers == [1, 2]
    assert [story.labelled(phase)[1] for phase in (1, 2)] == [10, 10]
    assert story.fold.recount() == 0


@BOTH
def test_a_recount_and_pruning_leave_phases_as_they_are(story: Story) -> None:
    for digest in (B1, B2):
        story.digests["B"] = digest
        story.asked("B", time=stamp(NOW - timedelta(hours=5)))
        story.both(2)
    assert story.fold.recount() == 0
    before = {phase: story.labelled(phase) for phase in (1, 2)}
    assert before == {1: (2, 3), 2: (2, 3)}
    assert prune(story.engine, NOW - timedelta(hours=3)) == 2
    assert story.fold.recount() == 0
    story.digests["B"] = B1
    story.asked("B")
    assert (story.phase, story.labelled(1)) == (1, (2, 4)), "what was pruned stays with its phase"
    assert story.labelled(2) == before[2]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("pruned", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_older_ledger_is_counted_by_phases_and_what_was_pruned_is_one_for_each_split(
    tmp_path: Path, kind: str, *, pruned: bool
) -> None:
    url = databases.empty(kind, tmp_path)
    engine = database.connect(url)
    migrated(engine, "0003")
    document = read({"name": "e", "maturity": "0d", "variants": TWO})
    texts = [document.model_dump_json(), document.model_copy(update={"salt": "2"}).model_dump_json()]
    columns = 'version, time, action, "by", reason, series, document'
    with engine.begin() as connection:
        for version, text in enumerate(texts, start=1):
            connection.execute(
                sa.text(f"INSERT INTO experiments ({columns}) VALUES (:v, :t, 'set', 'ada', 'so', :v, :d)"),
                {"v": version, "t": stamp(NOW), "d": text},
            )
        rows = [
            record(f"r{number}", time=stamp(NOW - timedelta(hours=1)), experiment_version=version)
            for number, version in enumerate((1, 1, 1, 2))
        ]
        for row in rows:
            told = row._asdict()
            names = ", ".join(told)
            connection.execute(
                sa.text(f"INSERT INTO predictions ({names}) VALUES ({', '.join(f':{n}' for n in told)})"),
                told,
            )
        if pruned:
            asked = (
                "INSERT INTO sums (experiment, hour, experiment_version, allocation, variant, kind, tag,"
                " model, version, requests, answered, refused, failed, saved, assigned, served, apart,"
                " apart_failed, together, timed, sum_p, sum_p2, log_latency, log_latency2)"
                " VALUES ('e', :hour, :version, 0, 'A', '', '', 'model-a', 'v1', :n, :n, 0, 0, 0, :n,"
                " :n, :n, 0, 0, :n, 1, 1, 1, 1)"
            )
            for hour in ("", "2026-11-23T13"):
                for version, n in ((1, 40), (2, 7)):
                    connection.execute(sa.text(asked), {"hour": hour, "version": version, "n": n})
            folded = {"name": "ledger", "p": 4}
            connection.execute(
                sa.text(
                    "INSERT INTO folds (name, predictions, side_answers, outcomes, recounts, pruned)"
                    " VALUES (:name, :p, 0, 0, 0, '2026-11-23T13')"
                ),
                folded,
            )
    database.migrate(engine)
    fold, experiments = Fold(engine), Experiments(engine)
    verdicts = Verdicts(engine, fold)
    expected = (40, 7) if pruned else (3, 1)
    for phase, requests in enumerate(expected, start=1):
        current, found = verdicts.of_phase(phase)
        assert verdicts.evidence(current, "real", phase=found, now=NOW).arm("A").requests == requests
    # The one in force goes on.
    now = experiments.current()
    assert now
    assert now.attempt == 1
    Ledger(engine).append(Entry([record("new", time=stamp(NOW - timedelta(hours=1)), experiment_version=2)]))
    assert verdicts.evidence(now, "real", now=NOW).arm("A").requests == expected[1] + 1
    assert [each.number for each in fold.phases.all()] == [1, 2]
    engine.dispose()


def test_spans_are_few_where_nothing_changes(story: Story, engine: sa.Engine) -> None:
    for _ in range(5):
        story.both(2)
        story.fold.catch_up()
    with engine.connect() as connection:
        assert len(connection.execute(sa.select(spans)).all()) == 1
    assert json.loads(json.dumps(story.verdicts.declared(story.current).to_dict()))["phase"] == 1
