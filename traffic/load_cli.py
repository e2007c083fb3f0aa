"""`runoff load` and `runoff loads`: how services behave under load, from a shell."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import click
from pydantic import ValidationError
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from runoff.cli import as_json, console, examples, say_json, say_table
from traffic.clients import HELD_OUT, KINDS
from traffic.load import MAX_RATE, MAX_SECONDS, MAX_USERS, Load, Recorder, Run, measure
from traffic.plan import MAX_SEED
from traffic.runs import (
    FIGURES,
    ROUTER,
    TARGETS,
    NoSuchRun,
    Runs,
    as_csv,
    behind,
    ms,
    offered,
    side_by_side,
    targets,
)

URL = "RUNOFF_ROUTER_URL"
KEY = "RUNOFF_OPERATOR_KEY"
LOOK_SECONDS = 0.2
LISTED = 50


@click.command(
    epilog=examples(
        "runoff load --rate 200 --seconds 30",
        "runoff load --users 50 --ramp 10",
        f"{TARGETS}='model_a=http://127.0.0.1:8001' runoff load --target model_a --rate 500",
    )
)
@click.option(
    "--url", envvar=URL, default="http://127.0.0.1:8000", show_default=True, help=f"The router. [env: {URL}]"
)
@click.option(
    "--target",
    default=ROUTER,
    show_default=True,
    help=f"Which of the targets that {TARGETS} names; the router alone where it names none.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, MAX_RATE, min_open=True),
    help=f"Requests per second, whatever becomes of them; at most {MAX_RATE:,}. Default: 50.",
)
@click.option(
    "--users",
    type=click.IntRange(1, MAX_USERS),
    help="A number of users instead of a rate: each asks once a second, and waits for its answer; "
    f"at most {MAX_USERS:,}.",
)
@click.option(
    "--ramp", type=click.FloatRange(0, MAX_SECONDS), default=0.0, help="Seconds until all of it is offered."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, MAX_SECONDS, min_open=True),
    default=30.0,
    show_default=True,
    help=f"How long; at most {MAX_SECONDS:,}.",
)
@click.option("--kind", type=click.Choice(KINDS), default=HELD_OUT, show_default=True, help="Who asks.")
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=1,
    show_default=True,
    help="The same seed sends the same requests.",
)
@as_json
def load(url: str, *, wants_json: bool, **given: Any) -> None:
    """Offer a load to a service, and measure what comes of it.

    Latency counts from when a request was due, so that a service that stalls is seen to stall. What is sent
    is tagged as a load test, and the run is kept: runoff loads shows it again, beside others. The key, where
    the router has keys, is in RUNOFF_OPERATOR_KEY.
    """
    if given["rate"] is None and given["users"] is None:
        given["rate"] = 50.0
    try:
        known = targets(os.environ, url)
        order = Load(**given)
    except ValidationError as error:
        raise click.UsageError(error.errors()[0]["msg"]) from None
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if order.target not in known:
        raise click.UsageError(f"there is no target {order.target}: there are {', '.join(known)}")
    recorder = Recorder(order, known[order.target])
    run = _watched(recorder, os.environ.get(KEY) if order.target == ROUTER else None, quiet=wants_json)
    if wants_json:
        say_json(run.model_dump(mode="json"))
    else:
        _say(run)
    if not run.answered or run.state == "broken off":
        raise SystemExit(1)


@click.command(
    epilog=examples("runoff loads", "runoff loads 20261125T1015 20261125T1020", "runoff loads 2026112 --csv")
)
@click.argument("ids", nargs=-1, metavar="[ID…]")
@click.option("--csv", "wants_csv", is_flag=True, help="The moments of one run, as CSV.")
@as_json
def loads(ids: Sequence[str], *, wants_csv: bool, wants_json: bool) -> None:
    """List the load tests that were run, or show some of them side by side.

    The beginning of an id will do; where several runs begin like that, the newest is meant.
    """
    kept = Runs.open()
    newest = kept.newest(LISTED)
    chosen = [_found(kept, newest, each) for each in ids]
    if wants_csv:
        if len(chosen) != 1:
            raise click.UsageError("--csv takes one run: give its id")
        return click.echo(as_csv(chosen[0]), nl=False)
    if wants_json:
        return say_json([each.model_dump(mode="json") for each in (chosen if ids else newest)])
    if ids:
        return say_table(("", *(each.id for each in chosen)), side_by_side(chosen))
    rows = [
        (
            *(each.id, each.load.target, offered(each), f"{each.load.seconds:g} s", each.state),
            *(f"{each.answered:,}", f"{each.failed:,}", ms(each, "p50"), ms(each, "p99")),
        )
        for each in newest
    ]
    head = ("run", "target", "offered", "for", "state", "answered", "failed", "p50, ms", "p99, ms")
    return say_table(head, rows, empty="No load test was run yet: runoff load")


def _watched(recorder: Recorder, key: str | None, *, quiet: bool) -> Run:
    """Measure, and show how it stands; Ctrl-C stops it."""
    kept, stop = Runs.open(), threading.Event()
    now = [recorder.run]

    def told(run: Run) -> None:
        kept.keep(run)
        now[0] = run

    # Not the thread is waited for: a join that was interrupted takes it for ended (python/cpython#90882).
    over = threading.Event()

    def run() -> None:
        try:
            measure(recorder, key=key, stop=stop, on_told=told)
        finally:
            over.set()

    threading.Thread(target=run, name="load").start()
    total = recorder.run.load.seconds
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    task = bar.add_task(f"Load on {recorder.run.load.target}", total=total, left="")
    shown = Live(_picture(bar, task, now[0]), console=console, transient=True, auto_refresh=False)
    try:
        if quiet or not console.is_terminal:
            over.wait()
            return now[0]
        with shown:
            while not over.wait(LOOK_SECONDS):
                shown.update(_picture(bar, task, now[0]), refresh=True)
    except KeyboardInterrupt:
        stop.set()
        over.wait()
    return now[0]


def _picture(bar: Progress, task: TaskID, run: Run) -> Group:
    """The bar, and the newest moments."""
    bar.update(task, completed=run.ran, left=f"{run.ran:.0f} of {run.load.seconds:g} s")
    table = Table(box=None, pad_edge=False)
    for name in ("second", "offered/s", "achieved/s", "p50, ms", "p95, ms", "p99, ms", "errors"):
        table.add_column(name, justify="right")
    # The last one is still coming.
    for each in run.moments[-9:-1]:
        figures = ("–" if value is None else f"{value:.1f}" for value in (each.p50, each.p95, each.p99))
        errors = ", ".join(f"{kind} {count:,}" for kind, count in each.errors.items())
        table.add_row(f"{each.at:g}", f"{each.offered:.1f}", f"{each.achieved:.1f}", *figures, errors)
    return Group(bar, table)


def _say(run: Run) -> None:
    verb = {"finished": "Offered", "stopped": "Stopped after", "broken off": "Broken off after"}
    rate = run.answered / run.ran if run.ran else 0.0
    click.echo(
        f"{verb[run.state]} {run.offered:,} requests in {run.ran:.1f} s: {run.answered:,} answered "
        f"({rate:,.1f} a second), {run.failed:,} failed"
        + (f", {run.omitted:,} not asked by users who still waited" if run.omitted else "")
    )
    if run.latency:
        click.echo("latency: " + ", ".join(f"{name} {ms(run, name)} ms" for name in FIGURES))
    for kind, count in run.errors.items():
        click.echo(f"  {count:,} × {kind}")
    if run.problem:
        click.echo(f"first failure: {run.problem}", err=True)
    if why := behind(run):
        click.echo(why, err=True)
    click.echo(f"Kept as {run.id}: runoff loads {run.id}")


def _found(kept: Runs, newest: Sequence[Run], beginning: str) -> Run:
    try:
        return next((each for each in newest if each.id.startswith(beginning)), None) or kept.get(beginning)
    except NoSuchRun as error:
        raise click.ClickException(f"{error}; runoff loads lists them") from None


if __name__ == "__main__":
    load(prog_name="runoff load")
