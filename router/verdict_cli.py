"""`runoff verdict` and `runoff plan`: which model stays, and when that can be known, from a shell."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click
from rich.console import Console
from rich.markdown import Markdown

from router.cli import KEY, URL, Router
from runoff.cli import as_json, examples, say_json, say_table

TRAFFIC = "The traffic to judge: real, a tag such as simulation, or all."


@click.command(
    epilog=examples(
        "runoff verdict", "runoff verdict --tag all --json", "runoff verdict --markdown > verdict.md"
    )
)
@click.option(
    "--url", envvar=URL, default="http://127.0.0.1:8000", show_default=True, help=f"The router. [env: {URL}]"
)
@click.option("--tag", default="real", show_default=True, help=TRAFFIC)
@click.option("--replay", metavar="NAME", help="Compare the champion with a replay set.")
@click.option(
    "--phase", type=click.IntRange(1), metavar="N", help="A phase that is over; runoff experiment phases."
)
@click.option("--markdown", is_flag=True, help="A page to keep, as Markdown.")
@as_json
def verdict(
    *, url: str, tag: str, replay: str | None, phase: int | None, markdown: bool, wants_json: bool
) -> None:
    """Say which variant stays, and what that rests on.

    One may look as often as one likes: the intervals and e-values hold at every moment at once. Outcomes
    count of requests that are older than the experiment's maturity; simulated traffic counts only where its
    tag is asked for. It is the verdict on the present phase: whenever a model, the split or a rule changes,
    another one begins, and the verdicts on those before stay.
    """
    router = Router(url, os.environ.get(KEY))
    given = {"tag": tag, "replay": replay, "phase": phase}
    asked = {name: value for name, value in given.items() if value}
    if wants_json:
        # With all that it takes besides the rows: whoever keeps it can count again.
        return say_json(router.get(f"verdict?{urlencode(asked | {'declared': 'true'})}"))
    page = router.page(f"verdict?{urlencode(asked)}")
    if markdown:
        return click.echo(page, nl=False)
    return Console().print(Markdown(page))


@click.command(
    epilog=examples(
        "runoff plan --difference 0.001",
        "runoff plan --difference 0.001 --per-day 5000 --labelled 0.9 --variance 0.04 --pair-variance 0.0004",
        "runoff plan --difference 0.001 --figure plan.html",
    )
)
@click.option(
    "--url", envvar=URL, default="http://127.0.0.1:8000", show_default=True, help=f"The router. [env: {URL}]"
)
@click.option(
    "--difference", type=float, required=True, help="What is worth finding, in units of the metric."
)
@click.option("--metric", type=click.Choice(["brier", "log-loss", "profit"]), help="Default: what decides.")
@click.option(
    "--power", type=float, default=0.8, show_default=True, help="Probability of finding that difference."
)
@click.option(
    "--share", type=float, help="The challenger's share in a split. Default: as traffic is split now."
)
@click.option("--tag", default="real", show_default=True, help=TRAFFIC)
@click.option("--per-day", type=float, help="Requests a day. Default: what was seen.")
@click.option("--labelled", type=float, help="The share whose outcome becomes known. Default: what was seen.")
@click.option(
    "--variance", type=float, help="Variance of one variant's score per request. Default: what was seen."
)
@click.option(
    "--pair-variance", type=float, help="Variance of the difference per request. Default: what was seen."
)
@click.option("--figure", type=click.Path(path_type=Path, dir_okay=False), help="Draw it, in one HTML file.")
@as_json
def plan(*, url: str, figure: Path | None, wants_json: bool, **asked: Any) -> None:
    """Say how many outcomes, and days, a decision takes by each design.

    Shadow compares both models on the same requests, and mostly takes far fewer. What is not given is taken
    from the traffic and the outcomes that were seen.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    told = Router(url, os.environ.get(KEY)).get(f"plan?{urlencode(given)}")
    if figure:
        _draw(told, figure)
    if wants_json:
        return say_json(told)
    click.echo(
        f"To find a difference of {told['difference']:g} in {told['metric']} with probability"
        f" {told['power']:g},"
        f" at {told['per_day']:,.0f} requests a day of which {told['labelled']:.0%} get an outcome:"
    )
    say_table(
        ("design", "outcomes for one look", "days", "on average, looking always", "days"),
        [
            (
                *(each["design"], f"{each['fixed']:,}", f"{each['days_fixed']:,.1f}"),
                *(f"{each['expected']:,}", f"{each['days_expected']:,.1f}"),
            )
            for each in told["designs"]
        ],
    )
    takes = {each["design"]: each["fixed"] for each in told["designs"]}
    if {"shadow", "split"} <= takes.keys():
        click.echo(f"A split takes {takes['split'] / takes['shadow']:,.3g} times as many outcomes as shadow.")
    for missing in told["missing"]:
        click.echo(missing)
    return None


def _draw(told: Any, file: Path) -> None:
    """The chance of having decided, by days, for each design."""
    from plotly import graph_objects  # noqa: PLC0415 (it takes its time, and most do not ask for it)

    drawing = graph_objects.Figure()
    for each, dash in zip(told["designs"], ("solid", "dash", "dot"), strict=False):
        _, days, chances = zip(*each["chances"], strict=True)
        drawing.add_scatter(x=days, y=chances, name=each["design"], line={"dash": dash})
    drawing.update_layout(
        title=f"When is a difference of {told['difference']:g} in {told['metric']} found?",
        xaxis={"title": "days", "type": "log"},
        yaxis={"title": "chance of having decided", "range": [0, 1], "tickformat": ".0%"},
        template="simple_white",
    )
    drawing.write_html(file, include_plotlyjs=True, config={"showSendToCloud": False})


if __name__ == "__main__":
    {"verdict": verdict, "plan": plan}[sys.argv.pop(1)](prog_name="runoff")
