"""What the router tells those who watch it: keys, spreads, the models behind variants, and drift."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from dashboard.drift import moved
from tests.house import House, until
from verdict.drift import psi, psi_limit


@pytest.fixture
def asked(house: House, clients: list[dict[str, int]]) -> House:
    """The shared house, with some requests on record of each variant."""
    for client in clients[:40]:
        house.router.asks(client)
    for client in clients[:5]:
        house.router.asks(client, X_Force_Variant="B")
    house.stats()
    return house


def test_whoever_reaches_a_router_without_keys_may_do_everything_and_is_told_so(house: House) -> None:
    assert house.router.gets("/v1/key").json == {
        "name": "anybody",
        "scope": "operator",
        "needed": False,
        "releases": False,
    }


def test_spreads_count_what_the_stats_count(asked: House) -> None:
    stats = asked.stats()
    told = asked.router.gets("/v1/distributions").json
    assert told["requests_last_hour"] <= stats["requests"]
    for each in told["variants"]:
        answered = stats["variants"][each["name"]]["answered"]
        assert sum(each["scores"]["counts"]) == answered
        # A batch took its time once.
        timed = sum(each["latency_ms"]["counts"])
        assert 0 < timed <= answered
        for name in ("scores", "latency_ms"):
            assert len(each[name]["edges"]) == len(each[name]["counts"]) + 1
        # A quantile of the stats lies where the counts say.
        p50 = stats["variants"][each["name"]]["latency_ms"]["p50"]
        edges, counts = each["latency_ms"]["edges"], np.cumsum(each["latency_ms"]["counts"])
        place = int(np.searchsorted(counts, timed / 2))
        assert edges[place] * 0.98 <= p50 <= edges[place + 1] * 1.02


def test_the_service_behind_a_variant_tells_the_same_through_the_router(house: House) -> None:
    direct = house.model_b.gets("/v1/models/model-b/versions").json
    through = house.router.gets("/v1/variants/B/versions")
    assert through.json == direct
    version = direct["versions"][0]["version"]
    assert direct["versions"][0]["size"] > 0
    for more in ("", "/card", "/reference"):
        path = f"/versions/{version}{more}"
        assert (
            house.router.gets(f"/v1/variants/B{path}").body
            == house.model_b.gets(f"/v1/models/model-b{path}").body
        )
    told = house.router.gets("/v1/variants/B/versions/no-such-version")
    assert (told.status, told.headers["Content-Type"]) == (404, "application/problem+json")
    assert house.router.gets("/v1/variants/C/versions").status == 404


@pytest.mark.parametrize(
    ("body", "pointer", "rule"),
    [
        ([], "", "type"),
        ({"version": "newest"}, "/reason", "required"),
        ({"reason": "to see"}, "/version", "required"),
        ({"version": 7, "reason": "to see"}, "/version", "type"),
        ({"version": "newest", "reason": "to see", "colour": "red"}, "/colour", "additionalProperties"),
    ],
)
def test_a_wrong_release_is_told_with_field_and_rule(
    house: House, body: object, pointer: str, rule: str
) -> None:
    reply = house.router.sends(json.dumps(body).encode(), "/v1/variants/A/releases")
    assert reply.status == 422
    assert [(each["pointer"], each["rule"]) for each in reply.errors] == [(pointer, rule)]


def test_releasing_through_the_router_needs_the_key_that_the_service_was_started_with(house: House) -> None:
    body = json.dumps({"version": "newest", "reason": "to see"}).encode()
    etag = house.router.gets("/v1/variants/A/releases").headers["ETag"]
    told = house.router.sends(body, "/v1/variants/A/releases", If_Match=etag)
    assert told.status == 403
    assert "RUNOFF_OPERATOR_KEY" in told.json["detail"]


def test_drift_counts_the_rows_of_a_variant_in_the_bins_of_its_training(asked: House) -> None:
    told = asked.router.gets("/v1/drift?variant=A&rows=20").json
    rows = [row for row in asked.record() if row["variant"] == "A" and row["prediction"] is not None][-20:]
    assert told["rows"] == 20
    assert (told["since"], told["until"]) == (rows[0]["time"], rows[-1]["time"])
    assert told["version"] == rows[-1]["version"]
    for name, spread in told["features"].items():
        values = [row["features"][name] for row in rows]
        if spread["values"]:
            counts = [values.count(each) for each in spread["values"]]
        else:
            inner = spread["edges"][1:-1]
            counts = np.bincount(
                np.searchsorted(inner, values, side="right"), minlength=len(inner) + 1
            ).tolist()
        assert spread["live"] == counts, name
        assert sum(spread["reference"]) == told["reference_rows"]


def test_calibration_counts_what_came_true_by_what_was_said(
    asked: House, clients: list[dict[str, int]]
) -> None:
    before = asked.router.gets("/v1/drift?variant=B&tag=calibration").json
    said = [
        asked.router.asks(client, X_Force_Variant="B", X_Traffic_Tag="calibration")
        for client in clients[50:62]
    ]
    reports = [
        {"id": each.headers["X-Request-ID"], "outcome": number % 2} for number, each in enumerate(said)
    ]
    assert asked.router.sends(json.dumps(reports).encode(), "/v1/outcomes").status == 200
    # What is reported last is what counts.
    correction = {"id": reports[0]["id"], "outcome": 1, "correction": True}
    assert asked.router.sends(json.dumps(correction).encode(), "/v1/outcomes").status == 201
    until(
        lambda: asked.router.gets("/v1/drift?variant=B&tag=calibration").json["labelled"] == 12,
        "the outcomes are known",
    )

    bins = asked.router.gets("/v1/drift?variant=B&tag=calibration").json["calibration"]
    assert before["labelled"] == 0
    assert sum(each["count"] for each in bins) == 12
    assert sum(each["positives"] for each in bins) == 7
    assert sum(each["sum_p"] for each in bins) == pytest.approx(sum(each.prediction for each in said))
    for each in bins:
        mine = [one.prediction for one in said if each["lower"] <= one.prediction < each["upper"]]
        assert each["count"] == len(mine)


@pytest.mark.slow
def test_who_is_asked_about_again_and_again_is_no_drift(house: House, clients: list[dict[str, int]]) -> None:
    # Held-out clients, of whom each comes four times.
    for client in clients * 4:
        house.router.asks(client, X_Force_Variant="A", X_Traffic_Tag="again")
    told = house.router.gets("/v1/drift?variant=A&tag=again").json
    assert (told["rows"], told["distinct"], told["tags"]) == (1200, 300, {"again": 1200})
    assert not [each.name for each in moved(told) if each.drifted]
    # As many rows that were all different would have been another population.
    assert [each.name for each in moved(told | {"distinct": told["rows"]}) if each.drifted]


def test_stats_and_spreads_are_had_from_an_hour_on(asked: House) -> None:
    now = datetime.now(UTC)
    told = asked.router.gets(f"/v1/stats?from={now:%Y-%m-%dT%H:%M:%SZ}").json
    assert told["since"] == f"{now:%Y-%m-%dT%H}:00:00Z"
    tomorrow = f"{now + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    after = asked.router.gets(f"/v1/stats?from={tomorrow}").json
    assert (after["requests"], after["variants"][0]["latency_ms"]) == (0, None)
    # What is on record is told all the same.
    assert sum(after["tags"].values()) >= told["requests"] > 0
    spreads = asked.router.gets(f"/v1/distributions?from={tomorrow}").json["variants"]
    assert [each["scores"]["counts"] for each in spreads] == [[], []]
    for path in ("stats", "distributions"):
        assert asked.router.gets(f"/v1/{path}?from=noon").status == 400


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?variant=",
        "?variant=C",
        "?variant=A&rows=0",
        "?variant=A&rows=5001",
        "?variant=A&rows=x",
        "?variant=A&from=noon",
    ],
)
def test_a_question_for_drift_that_makes_no_sense_is_refused(asked: House, query: str) -> None:
    assert asked.router.gets(f"/v1/drift{query}").status in (400, 404)


def test_psi_of_the_same_shares_is_nothing_and_grows_with_the_difference() -> None:
    assert psi([100, 200, 300], [10, 20, 30]) == pytest.approx(0)
    # By hand: (.5 − .25) ln(.5 / .25) + (.5 − .75) ln(.5 / .75).
    assert psi([25, 75], [50, 50]) == pytest.approx(0.25 * np.log(2) - 0.25 * np.log(2 / 3))
    assert psi([100, 0], [50, 50]) < np.inf


@pytest.mark.slow
@pytest.mark.parametrize("window", [60, 500])
@pytest.mark.parametrize(
    "shares", [[0.05] * 20, [0.6, 0.25, 0.1, 0.03, 0.01, 0.005, 0.003, 0.002]], ids=["even", "rare"]
)
def test_by_chance_alone_one_psi_in_twenty_exceeds_its_limit(shares: list[float], window: int) -> None:
    chance = np.random.default_rng(7)
    looks = [(chance.multinomial(2000, shares), chance.multinomial(window, shares)) for _ in range(1000)]
    beyond = [psi(*each) > psi_limit(*each) for each in looks]
    # Of 1,000 at a level of 5 % it is between 2.8 and 7.4 %, but for one time in a thousand.
    assert 0.028 < np.mean(beyond) < 0.074
