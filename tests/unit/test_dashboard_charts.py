"""What charts and tables of the dashboard say, of figures made for it."""

from __future__ import annotations

from typing import Any

import pytest
from dash import html

from dashboard import charts, drift, pieces, reliability, verdict_words
from dashboard.spreads import log_axis


@pytest.mark.parametrize(
    ("least", "most", "named"),
    [
        (1.2, 48.0, ["2", "5", "10", "20"]),
        # Between two ticks, the axis reaches to both.
        (7.6, 7.9, ["5", "10"]),
        (0.2, 3000.0, ["1", "10", "100", "1,000"]),
    ],
)
def test_each_tick_of_a_logarithmic_axis_is_named_by_its_whole_value(
    least: float, most: float, named: list[str]
) -> None:
    axis = log_axis(least, most)
    low, high = (10**end for end in axis["range"])
    seen = [
        text
        for tick, text in zip(axis["tickvals"], axis["ticktext"], strict=True)
        if 0.999 * low <= tick <= 1.001 * high
    ]
    assert seen == named
    assert low <= 1.001 * least
    assert high >= 0.999 * most


def test_a_share_of_nothing_has_an_axis_from_nothing_up() -> None:
    points = charts.Points([], 40, (1, 0), 40, 0, "B", 0.0)
    figure = charts.share_figure(points)
    assert list(figure.layout.yaxis.range) == [0, 0.05]


def bins(*counts: tuple[int, int, float]) -> list[dict[str, Any]]:
    return [
        {
            "lower": number / 10,
            "upper": (number + 1) / 10,
            "count": n,
            "sum_p": n * said,
            "positives": positives,
        }
        for number, (n, positives, said) in enumerate(counts)
    ]


def test_a_bin_is_off_only_where_that_is_not_one_of_many_chances() -> None:
    # 34 of 100 where 24% were predicted: for one bin alone that is too many, for one of nine it is not.
    odd, fine = (100, 34, 0.24), (1000, 500, 0.5)
    assert "▲ 1 of 1 bins are off" in reliability.summary(bins(odd))
    assert "every bin is within its interval" in reliability.summary(bins(odd, *[fine] * 8))
    assert "▲ 1 of 9 bins are off" in reliability.summary(bins((100, 60, 0.24), *[fine] * 8))


def test_an_overlay_of_many_bins_names_few_of_their_edges_and_all_values() -> None:
    edges = [-53007.0, *(10.0 * 2**power for power in range(20))]
    look = {"color": "#0072B2", "dash": "solid", "symbol": "circle"}
    spread = {"edges": edges, "values": None, "reference": [5] * 20, "live": [4] * 20, "missing": [0, 3]}
    axis = drift.overlay_figure({**spread, "other": 0}, look, "light").layout.xaxis
    assert len(axis.ticktext) <= 9
    assert max(map(len, axis.ticktext)) <= 7
    assert (axis.ticktext[0], axis.ticktext[-1]) == ("−53k", "missing")
    values = {"edges": None, "values": [-1, 0, 2], "reference": [5] * 3, "live": [4] * 3, "missing": [0, 0]}
    assert drift.overlay_figure({**values, "other": 0}, look, "light").layout.xaxis.ticktext == (
        "−1",
        "0",
        "2",
    )


def test_drift_says_which_traffic_it_looked_at() -> None:
    found = {"variant": "A", "rows": 700, "tags": {"simulation": 700}}
    assert "700 requests (simulated traffic)" in drift.summary(found, [])
    mixed = found | {"tags": {"simulation": 500, "real": 200}}
    assert "(▲ mixed: 200 of real traffic and 500 of simulated traffic)" in drift.summary(mixed, [])


def test_columns_of_figures_stand_to_the_right_and_those_of_words_do_not() -> None:
    table = pieces.table(
        ("Metric", "A", "Interval", "State"),
        [("Brier", "0.14 (0.13 to 0.15)", "−0.02 to 0.05", "clear"), ("AUC", "–", "1.2e−05 or more", "–")],
    )
    [head, _body] = table.children
    assert [cell.className for cell in head.children.children] == ["", "figure", "figure", ""]
    assert isinstance(table, html.Table)


def test_a_funnel_of_one_point_says_when_there_will_be_another() -> None:
    point = {"n": 200, "difference": 0.01, "interval": {"lower": -0.1, "upper": 0.1}, "e_value": 1.0}
    told = {"metric": "brier", "champion": "A", "margin": 0.0, "alpha": 0.05}
    one = {"challenger": "B", "n": 200, "history": [point]}
    assert "a point for each hour at most" in verdict_words.funnel_summary(told, one)
    two = one | {"history": [point, point]}
    assert "a point for each hour" not in verdict_words.funnel_summary(told, two)


def test_checks_of_several_challengers_name_theirs() -> None:
    check = {"name": "disagreement", "state": "passed", "seen": "1 of 20 differ"}
    told = {"checks": [], "comparisons": [{"challenger": name, "checks": [check]} for name in ("B", "C")]}
    assert [name for name, *_ in verdict_words.checks(told)] == ["Disagreement, B", "Disagreement, C"]


def test_the_headline_tells_of_errors_what_the_tile_tells() -> None:
    def variant(name: str, refused: int, failed: int) -> dict[str, Any]:
        figures = {"requests": 500, "answered": 500 - refused - failed, "refused": refused, "failed": failed}
        share = {"share": 0.5, "share_of": 1000, "configured_share": 0.5, "share_interval": [0.4, 0.6]}
        more = {"latency_ms": None, "mean_prediction": 0.2, "shadow": None, "forced": 0, "failing": None}
        return {"name": name, "role": "champion" if name == "A" else "challenger"} | figures | share | more

    def told(refused: int, failed: int) -> tuple[str, str]:
        stats = {
            "variants": [variant("A", 0, 0), variant("B", refused, failed)],
            **{"requests": 1000, "mode": "split", "paused": False, "since": None, "tags": {"real": 1000}},
            **{"version": 1, "allocation": 0, "labelled": 0, "experiment": "e", "as_of": "", "cursor": 1000},
        }
        [tile] = [each for each in pieces.tiles(stats) if "50.1%" in str(each) or "Errors" in str(each)]
        return pieces.summary(stats, "real"), str(tile)

    headline, tile = told(500, 1)
    assert "501 without an answer (50.1%)" in headline
    assert "50.1%" in tile
    assert "no errors" in told(0, 0)[0]
