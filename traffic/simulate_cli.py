"""`runoff simulate`: traffic of which the truth is known, from a shell."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import asdict
from types import FrameType
from typing import Any, get_args

import click
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from runoff.cli import as_json, console, examples, say_json
from traffic.clients import DRIFTS, HELD_OUT, KINDS
from traffic.faults import FAULTS, Break
from traffic.outcomes import Delays
from traffic.plan import MAX_SEED, TAG, Plan, Shape
from traffic.simulation import Late, Order, Progress, Simulation

URL = "RUNOFF_ROUTER_URL"
KEY = "RUNOFF_OPERATOR_KEY"
LOOK_SECONDS = 0.2
NOT_BEFORE = click.FloatRange(0)


@click.command(
    epilog=examples(
        "runoff simulate --rate 20 --seconds 60",
        "runoff simulate --requests 500 --outcomes 5 --delays by-outcome",
        "runoff simulate --shape bursts --drift two-months-late --drift-at 30",
        "runoff simulate --outcomes 2 --break B --fault upside-down --break-at 20",
    )
)
@click.option(
    "--url", envvar=URL, default="http://127.0.0.1:8000", show_default=True, help=f"The router. [env: {URL}]"
)
@click.option(
    "--rate",
    type=click.FloatRange(0, 5000, min_open=True),
    default=10.0,
    show_default=True,
    help="Requests per second.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 86_400, min_open=True),
    default=60.0,
    show_default=True,
    help="How long.",
)
@click.option(
    "--shape", type=click.Choice(get_args(Shape)), default="steady", show_default=True, help="How they come."
)
@click.option(
    "--requests",
    type=click.IntRange(1, 1_000_000),
    help="A number of requests instead of a rate: as fast as answers come.",
)
@click.option(
    "--at-once",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    help="How many of those requests wait for an answer at once.",
)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default=HELD_OUT,
    show_default=True,
    help="Who asks: real clients, or with such a payment history.",
)
@click.option(
    "--users",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Number of units that come again; by default each request is a unit of its own.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=1,
    show_default=True,
    help="The same seed sends the same requests.",
)
@click.option(
    "--outcomes",
    "late",
    type=NOT_BEFORE,
    metavar="SECONDS",
    help="Tell the true outcomes, on average this many seconds after the answer.",
)
@click.option(
    "--delays",
    type=click.Choice(get_args(Delays)),
    default="exponential",
    show_default=True,
    help="How that varies; by-outcome tells of defaults four times sooner.",
)
@click.option("--drift", type=click.Choice(list(DRIFTS)), help="What happens to everybody.")
@click.option("--drift-at", type=NOT_BEFORE, default=0.0, show_default=True, help="After so many seconds.")
@click.option(
    "--break",
    "variant",
    metavar="VARIANT",
    help="Break this variant for simulated traffic; the change of the experiment is taken back at the end.",
)
@click.option(
    "--fault", type=click.Choice(FAULTS), default="errors", show_default=True, help="How it breaks."
)
@click.option("--break-at", type=NOT_BEFORE, default=0.0, show_default=True, help="After so many seconds.")
@as_json
def simulate(url: str, *, wants_json: bool, **given: Any) -> None:
    """Send simulated traffic through the router: real clients whose outcomes are known.

    Each request is sent when it is due, whatever became of those before it, and carries the tag
    "simulation". True outcomes are told late, if you like, so that the verdict can be seen to come true:
    runoff verdict --tag simulation. The key, where the router has keys, is in RUNOFF_OPERATOR_KEY.

    While a variant is broken the experiment is in a phase of its own; then the one of before goes on.
    """
    simulation = Simulation(_order(given), url, os.environ.get(KEY))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    threading.Thread(target=simulation.run, name="simulation").start()
    try:
        _watch(simulation, quiet=wants_json)
    except KeyboardInterrupt:
        # Not the thread is waited for: a join that was interrupted takes it for ended (python/cpython#90882).
        simulation.stop()
        simulation.wait()
    progress = simulation.progress
    if wants_json:
        say_json({"order": simulation.order.model_dump(mode="json"), **asdict(progress)})
    else:
        _say(progress)
    # What a broken variant fails to answer is what was asked for.
    if (progress.problem and not given["variant"]) or not progress.answers:
        raise SystemExit(1)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _order(given: dict[str, Any]) -> Order:
    plan = Plan(
        **{
            name: given[name]
            for name in ("rate", "seconds", "shape", "seed", "kind", "users", "drift", "drift_at")
        }
    )
    return Order(
        plan=plan,
        requests=given["requests"],
        at_once=given["at_once"],
        outcomes=None if given["late"] is None else Late(mean=given["late"], delays=given["delays"]),
        broken=Break(variant=given["variant"], fault=given["fault"], at=given["break_at"])
        if given["variant"]
        else None,
    )


def _watch(simulation: Simulation, *, quiet: bool) -> None:
    """Show how far it is, until it is over."""
    order = simulation.order
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    with Bars(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        task = bars.add_task("Sending", total=order.requests or order.plan.seconds, told="")
        while not simulation.wait(LOOK_SECONDS):
            now = simulation.progress
            bars.update(task, completed=now.done if order.requests else now.seconds, told=_counts(now))


def _counts(progress: Progress) -> str:
    told = f"{sum(progress.answers.values()):,} answered"
    if progress.answers:
        told += f" ({', '.join(f'{name} {count:,}' for name, count in progress.answers.items())})"
    told += f", {progress.failed:,} failed"
    if progress.not_sent:
        told += f", {progress.not_sent:,} not sent in time"
    if progress.told or progress.untold:
        told += f"; outcomes: {progress.told:,} told, {progress.untold:,} to come"
    return told


def _say(progress: Progress) -> None:
    state = "Stopped after" if progress.stopped else "Sent"
    click.echo(f"{state} {progress.done:,} requests in {progress.seconds:.1f} s: {_counts(progress)}")
    if progress.problem:
        click.echo(f"first failure: {progress.problem}", err=True)
    if progress.told:
        click.echo(f"See what they say: runoff verdict --tag {TAG}")


if __name__ == "__main__":
    simulate(prog_name="runoff simulate")
