"""The experiment's versions: taken in from a file, changed by one at a time, followed by every worker."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from router import database, tables
from router.database import DatabaseDown
from router.experiment import Experiment, read
from router.experiments import Current, Experiments, Following, NotPossible, Place, Stale
from runoff.problems import Unavailable
from tests import databases
from tests.house import until

WHO: dict[str, Any] = {"by": "ada", "reason": "so"}


def document(**fields: Any) -> Experiment:
    variants = [
        {"name": "A", "role": "champion", "url": "http://a.example", "weight": 80},
        {"name": "B", "url": "http://b.example", "weight": 20},
    ]
    return read({"name": "credit", "variants": variants} | fields)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return databases.ledger("sqlite", tmp_path)


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = database.connect(url)
    yield engine
    engine.dispose()


@pytest.fixture
def experiments(engine: sa.Engine) -> Experiments:
    return Experiments(engine)


def begun(experiments: Experiments, **fields: Any) -> Current:
    experiments.take_in(document(**fields))
    current = experiments.current()
    assert current
    return current


def actions(experiments: Experiments) -> list[tuple[Place, str]]:
    return [(entry.place, entry.action) for entry in experiments.audit(Place(0, 0), 100)]


def test_the_file_is_taken_in_once_and_again_when_it_changes(experiments: Experiments) -> None:
    first = begun(experiments)
    assert (first.version, first.document, first.weights) == (1, document(), {"A": 0.8, "B": 0.2})
    assert begun(experiments) == first
    assert begun(experiments, maturity="30d").version == 2
    assert begun(experiments).version == 3


def test_what_was_set_over_rest_outlives_a_restart_unless_the_file_has_changed(
    experiments: Experiments,
) -> None:
    begun(experiments)
    experiments.set(document(maturity="1d"), expected=1, **WHO)
    assert begun(experiments).document.matures_after.days == 1
    edited = begun(experiments, maturity="30d")
    assert (edited.version, edited.document.matures_after.days, edited.action) == (3, 30, "configure")


def test_a_file_without_a_maturity_that_an_earlier_release_took_in_as_0_has_not_changed(
    experiments: Experiments,
) -> None:
    begun(experiments, maturity="0d")
    experiments.set(document(timeout_seconds=1, maturity="0d"), expected=1, **WHO)
    kept = begun(experiments)
    assert (kept.version, kept.document.maturity) == (2, timedelta(0))
    assert begun(experiments, maturity="30d").version == 3


def test_workers_that_start_at_once_take_the_file_in_once(experiments: Experiments) -> None:
    workers = [threading.Thread(target=experiments.take_in, args=(document(),)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert actions(experiments) == [(Place(1, 0), "configure")]


def test_of_changes_to_the_same_version_one_comes_first_and_the_others_are_told(
    experiments: Experiments,
) -> None:
    begun(experiments)
    done: list[str] = []

    def change(number: int) -> None:
        try:
            experiments.set(document(maturity=f"{number}d"), expected=1, **WHO)
        except Stale:
            done.append("stale")
        else:
            done.append("set")

    threads = [threading.Thread(target=change, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["set"] + ["stale"] * 5
    with pytest.raises(Stale, match="version 2 is in force, not 1"):
        experiments.pause(expected=1, **WHO)


def test_an_allocation_takes_the_place_of_the_weights_until_the_split_is_another(
    experiments: Experiments,
) -> None:
    first = begun(experiments)
    ramped = experiments.ramp(0.5, expected=1, **WHO)
    assert ramped.weights == {"A": 0.5, "B": 0.5}
    assert ramped.place == Place(1, 1)
    with pytest.raises(Stale):
        experiments.allocate(first, {"A": 1}, "step", by="canary", reason="too late")
    # What leaves the split alone leaves the units where they are.
    carried = experiments.set(document(maturity="30d"), expected=1, **WHO)
    assert (carried.place, carried.weights, carried.series) == (Place(2, 1), ramped.weights, 1)
    other = experiments.set(document(maturity="30d", salt="new"), expected=2, **WHO)
    assert (other.place, other.weights, other.series) == (Place(3, 0), first.weights, 3)


def test_paused_all_goes_to_the_champion_and_nothing_counts(experiments: Experiments) -> None:
    begun(experiments)
    experiments.ramp(0.4, expected=1, **WHO)
    paused = experiments.pause(expected=1, **WHO)
    assert paused.weights == {"A": 1, "B": 0}
    assert {paused.assign(str(unit)) for unit in range(50)} == {(paused.document.variants[0], None)}
    assert paused.assign()[1] is None
    for change in (experiments.pause, lambda **who: experiments.ramp(0.1, **who)):
        with pytest.raises(NotPossible, match="paused"):
            change(expected=1, **WHO)
    resumed = experiments.resume(expected=1, **WHO)
    assert resumed.weights == {"A": pytest.approx(0.6), "B": pytest.approx(0.4)}
    assert resumed.assign("unit").propensity in (pytest.approx(0.6), pytest.approx(0.4))
    with pytest.raises(NotPossible, match="neither held nor paused"):
        experiments.resume(expected=1, **WHO)


def test_a_pause_outlives_a_change_of_the_document_and_knows_what_was_before(
    experiments: Experiments,
) -> None:
    begun(experiments)
    experiments.ramp(0.4, expected=1, **WHO)
    experiments.pause(expected=1, **WHO)
    carried = experiments.set(document(maturity="30d"), expected=1, **WHO)
    assert carried.paused
    assert experiments.resume(expected=2, **WHO).weights["B"] == pytest.approx(0.4)
    experiments.pause(expected=2, **WHO)
    other = experiments.set(document(mode="bandit"), expected=2, **WHO)
    assert other.paused
    assert experiments.resume(expected=3, **WHO).weights == {"A": 0.5, "B": 0.5}


@pytest.mark.parametrize("mode", ["canary", "bandit"])
def test_held_the_weights_stay_and_all_counts_until_it_is_resumed(
    experiments: Experiments, mode: str
) -> None:
    before = begun(experiments, mode=mode)
    held = experiments.hold(expected=1, **WHO)
    assert (held.held, held.paused, held.weights) == (True, False, before.weights)
    assert held.assign("unit") == before.assign("unit")
    with pytest.raises(NotPossible, match="held already"):
        experiments.hold(expected=1, **WHO)
    carried = experiments.set(document(mode=mode, maturity="30d"), expected=1, **WHO)
    assert (carried.held, carried.weights) == (True, before.weights)
    resumed = experiments.resume(expected=2, **WHO)
    assert (resumed.held, resumed.weights) == (False, before.weights)
    assert actions(experiments)[-2:] == [(Place(2, 2), "hold"), (Place(2, 3), "resume")]
    experiments.hold(expected=2, **WHO)
    assert experiments.pause(expected=2, **WHO).weights == {"A": 1, "B": 0}
    with pytest.raises(NotPossible, match="paused: resume it first"):
        experiments.hold(expected=2, **WHO)
    ended = experiments.resume(expected=2, **WHO)
    assert (ended.held, ended.weights) == (False, before.weights)
    experiments.hold(expected=2, **WHO)
    assert not experiments.promote("B", expected=2, **WHO).held


def test_a_held_canary_is_ramped_by_hand_and_goes_on_and_another_split_begins_held(
    experiments: Experiments,
) -> None:
    begun(experiments, mode="canary")
    experiments.hold(expected=1, **WHO)
    ramped = experiments.ramp(0.3, expected=1, **WHO)
    assert (ramped.held, ramped.weights["B"]) == (False, 0.3)
    experiments.hold(expected=1, **WHO)
    other = experiments.set(document(mode="bandit"), expected=1, **WHO)
    assert (other.held, other.weights) == (True, {"A": 0.5, "B": 0.5})
    assert not experiments.set(document(mode="split"), expected=2, **WHO).held


@pytest.mark.parametrize("mode", ["split", "shadow"])
def test_where_nothing_moves_nothing_is_held(experiments: Experiments, mode: str) -> None:
    begun(experiments, mode=mode)
    with pytest.raises(NotPossible, match=f"in the mode {mode} nothing moves"):
        experiments.hold(expected=1, **WHO)


def test_a_paused_shadow_asks_no_challenger(experiments: Experiments) -> None:
    current = begun(experiments, mode="shadow")
    assert current.shadowed("r-1")
    assert current.assign("unit") == (current.document.variants[0], 1)
    assert not experiments.pause(expected=1, **WHO).shadowed("r-1")


@pytest.mark.parametrize("mode", ["split", "shadow", "canary", "bandit"])
def test_a_promoted_variant_is_the_champion_with_all_traffic_and_ends_a_pause(
    experiments: Experiments, mode: str
) -> None:
    begun(experiments, mode=mode)
    experiments.pause(expected=1, **WHO)
    promoted = experiments.promote("B", expected=1, **WHO)
    assert promoted.weights == {"A": 0, "B": 1}
    assert promoted.document.champion is not None
    assert promoted.document.champion.name == "B"
    assert promoted.document.mode == ("shadow" if mode == "shadow" else "split")
    assert promoted.assign("unit").propensity == 1
    with pytest.raises(NotPossible, match="no variant named C"):
        experiments.promote("C", expected=2, **WHO)


@pytest.mark.parametrize(
    ("mode", "share", "variant", "weights"),
    [
        ("split", 0.0, "B", {"A": 0.8, "B": 0, "C": 0.2}),
        ("split", 0.5, "A", {"A": 0.5, "B": 0.25, "C": 0.25}),
        ("split", 1.0, "C", {"A": 0, "B": 0, "C": 1}),
        ("split", 0.5, None, "say which"),
        ("split", 0.5, "D", "no variant named D"),
        ("shadow", 0.5, "B", "mode shadow"),
        ("bandit", 0.5, "B", "mode bandit"),
    ],
)
def test_a_ramp_leaves_the_others_in_proportion(
    experiments: Experiments, mode: str, share: float, variant: str | None, weights: Any
) -> None:
    three = [{"name": name, "url": "http://h", "weight": 4 if name == "A" else 1} for name in "ABC"]
    begun(experiments, mode=mode, variants=[three[0] | {"role": "champion"}, *three[1:]])
    if isinstance(weights, str):
        with pytest.raises(NotPossible, match=weights):
            experiments.ramp(share, variant, expected=1, **WHO)
    else:
        assert experiments.ramp(share, variant, expected=1, **WHO).weights == pytest.approx(weights)


def test_from_all_of_the_traffic_a_ramp_gives_back_as_the_document_begins(experiments: Experiments) -> None:
    begun(experiments)
    experiments.ramp(1, "B", expected=1, **WHO)
    assert experiments.ramp(0.7, "B", expected=1, **WHO).weights == pytest.approx({"A": 0.3, "B": 0.7})
    experiments.promote("B", expected=1, **WHO)
    assert experiments.ramp(0.9, "B", expected=2, **WHO).weights == pytest.approx({"A": 0.1, "B": 0.9})


def test_the_audit_holds_versions_and_allocations_in_the_order_in_which_they_came(
    experiments: Experiments,
) -> None:
    current = begun(experiments)
    experiments.allocate(current, {"A": 1, "B": 3}, "update", by="bandit", reason="B is", evidence={"n": 7})
    experiments.pause(expected=1, **WHO)
    experiments.set(document(maturity="1d"), expected=1, **WHO)
    assert actions(experiments) == [
        (Place(1, 0), "configure"),
        (Place(1, 1), "update"),
        (Place(1, 2), "pause"),
        (Place(2, 0), "set"),
        (Place(2, 1), "carry"),
        (Place(2, 2), "pause"),
    ]
    assert [entry.place for entry in experiments.audit(Place(1, 1), 2)] == [(1, 2), (2, 0)]
    assert [entry.place for entry in experiments.last(2)] == [(2, 1), (2, 2)]
    first, update, *_ = experiments.audit(Place(0, 0), 2)
    assert (first.by, first.document["name"], first.weights) == ("the configuration file", "credit", None)
    assert (update.by, update.reason, update.evidence) == ("bandit", "B is", {"n": 7})
    assert (update.document, update.weights) == (None, {"A": 1, "B": 3})
    times = [entry.time for entry in experiments.audit(Place(0, 0), 100)]
    assert times == sorted(times)


def test_a_worker_takes_the_file_in_and_follows_what_others_change(
    experiments: Experiments, url: str
) -> None:
    mine, others = Following(experiments, document()), Following(Experiments(database.connect(url)))
    kept = mine.now()
    assert kept.version == 1
    assert others.now() == kept
    experiments.ramp(0.5, expected=1, **WHO)
    until(lambda: others.now().place == mine.now().place == (1, 1), "what was changed is followed")
    assert others.now().weights == {"A": 0.5, "B": 0.5}
    assert kept.weights == {"A": 0.8, "B": 0.2}, "a request that has begun sees one state"


def test_while_the_database_is_away_what_is_known_stays_in_force(experiments: Experiments, url: str) -> None:
    following = Following(experiments, document())
    known = following.now()
    path = Path(url.removeprefix("sqlite:///"))
    experiments._engine.dispose()
    away = path.rename(path.with_suffix(".away"))
    path.mkdir()
    until(lambda: following.trouble is not None, "the trouble is told")
    assert following.now() is known
    path.rmdir()
    for leftover in path.parent.glob("ledger.sqlite-*"):
        leftover.unlink()
    away.rename(path)
    experiments.ramp(0.5, expected=1, **WHO)
    until(lambda: following.now().place == (1, 1), "what was changed is followed")
    assert following.trouble is None


def test_a_database_that_is_away_at_the_start_is_said_to_be_and_followed_when_it_is_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "later" / "ledger.sqlite"
    engine = database.connect(f"sqlite:///{path}")
    path.mkdir()
    following = Following(Experiments(engine), document())
    for ask in (following.now, following.check):
        with pytest.raises(Unavailable, match="could not be read yet: the database cannot be reached"):
            ask()
    path.rmdir()
    database.migrate(engine)
    until(lambda: following.trouble is None, "the trouble is over")
    assert following.now().version == 1


def test_a_document_that_cannot_be_read_is_said_to_be_and_can_be_replaced(
    experiments: Experiments, engine: sa.Engine
) -> None:
    following = Following(experiments, document())
    known = following.now()
    stranger = {"version": 2, "time": "2030-01-01T00:00:00.000000Z", "by": "later", "reason": "newer"}
    with engine.begin() as connection:
        row = stranger | {
            "action": "set",
            "series": 2,
            "document": json.dumps({"form": "of a later release"}),
        }
        connection.execute(tables.experiments.insert(), row)
    following.look()
    assert following.now() is known
    assert "name: Field required" in (following.trouble or "")
    assert begun(experiments, maturity="1d").version == 3


def test_a_change_that_the_database_does_not_take_is_said_to_be_lost(url: str) -> None:
    experiments = Experiments(database.connect(url + ".empty"))
    with pytest.raises(DatabaseDown):
        experiments.take_in(document())
