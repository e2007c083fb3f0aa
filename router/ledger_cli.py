"""`runoff keys`, `prune`, `recount` and `replay`: what is done to a router's database, from a shell."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click
import sqlalchemy as sa
import urllib3
from rich.progress import track

from router import database, retention
from router.database import DatabaseDown, stamp
from router.entries import Entry, SideAnswer
from router.experiment import UNITS
from router.fold import Fold
from router.keys import SCOPES, Keys, KeyTrouble
from router.ledger import Ledger
from router.tables import predictions, side_answers
from runoff.cli import Commands, as_json, console, examples, say_json, say_table

AGE = re.compile(r"(\d+) ?([wdhms])")
ROWS = 200
SECONDS = 60.0

Command = TypeVar("Command", bound=Callable[..., Any])


def _connected(_: click.Context, parameter: click.Parameter, url: str | None) -> sa.Engine:
    try:
        engine = database.connect(url)
        database.migrate(engine)
    except DatabaseDown as error:
        raise click.ClickException(f"the database cannot be reached: {error}") from None
    # No URL, or one of a database that nobody here knows.
    except (sa.exc.ArgumentError, ImportError, OSError) as error:
        raise click.BadParameter(str(error), param=parameter) from None
    return engine


def on_ledger(command: Command) -> Command:
    """Give a command the database, and the option that says which; what fails there is said in one line."""

    @functools.wraps(command)
    def told(*given: Any, **named: Any) -> Any:
        try:
            return command(*given, **named)
        except (DatabaseDown, KeyTrouble) as error:
            raise click.ClickException(str(error)) from None

    return click.option(
        "--ledger",
        "engine",
        envvar="RUNOFF_LEDGER",
        callback=_connected,
        help="The router's database, a SQLAlchemy URL. [env: RUNOFF_LEDGER; default: var/ledger.sqlite]",
    )(told)  # type: ignore[return-value]


def _ago(_: click.Context, parameter: click.Parameter, text: str) -> datetime:
    """A time, or how long ago it was."""
    try:
        if found := AGE.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{UNITS[found[2]]: int(found[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    # Before there were years.
    except (ValueError, OverflowError):
        raise click.BadParameter(
            "takes 90d, 12h, or a time such as 2026-11-23T14:05", param=parameter
        ) from None


@click.group(cls=Commands)
def keys() -> None:
    """Add, list and revoke the keys of those who use the router.

    Without any key a router is open to whoever reaches it, and so it listens at this machine alone.
    """


@keys.command(
    epilog=examples("runoff keys add dashboard --scope read", "runoff keys add shop --scope predict")
)
@click.argument("name")
@click.option("--scope", type=click.Choice(SCOPES), required=True, help="What it may do.")
@click.option(
    "--per-second",
    type=click.FloatRange(0.001),
    help="The most requests a second that each worker lets through.",
)
@on_ledger
def add(engine: sa.Engine, *, name: str, scope: Any, per_second: float | None) -> None:
    """Add a key named NAME, and print it once: only its hash is kept."""
    click.echo(Keys(engine).add(name, scope, per_second))


@keys.command(epilog=examples("runoff keys revoke dashboard"))
@click.argument("name")
@on_ledger
def revoke(engine: sa.Engine, *, name: str) -> None:
    """Revoke the key NAME; every worker knows within a second."""
    Keys(engine).revoke(name)
    click.echo(f"{name} is revoked")


@keys.command("list", epilog=examples("runoff keys list"))
@as_json
@on_ledger
def list_(engine: sa.Engine, *, wants_json: bool) -> None:
    """List all keys, those that were revoked, too."""
    found = Keys(engine).all()
    if wants_json:
        return say_json([vars(key) for key in found])
    return say_table(
        ("name", "scope", "per second", "added", "revoked"),
        [(key.name, key.scope, key.per_second or "any", key.added, key.revoked or "") for key in found],
        empty="there are no keys: whoever reaches the router may do everything",
    )


@click.command(epilog=examples("runoff prune --older-than 90d"))
@click.option("--older-than", "before", callback=_ago, required=True, help="90d, 12h, or a time.")
@on_ledger
def prune(engine: sa.Engine, *, before: datetime) -> None:
    """Delete old predictions with all that is known of each; what they add to the sums stays."""
    click.echo(f"{retention.prune(engine, before):,} predictions deleted")


@click.command(epilog=examples("runoff recount"))
@on_ledger
def recount(engine: sa.Engine) -> None:
    """Count the rows anew, and correct the sums that differ; those of hours that were pruned stay."""
    click.echo(f"{Fold(engine).recount():,} sums corrected")


@click.command(
    epilog=examples(
        "runoff replay --since 7d --model model-a --version 20261123T135446Z-8fc67"
        " --url http://127.0.0.1:8001 --set before-release"
    )
)
@click.option("--since", callback=_ago, required=True, help="Requests from then on: 7d, 12h, or a time.")
@click.option("--model", required=True, help="Whose version is asked.")
@click.option("--version", required=True, help="The version's whole id.")
@click.option("--url", required=True, help="A prediction service that has the version in its store.")
@click.option("--set", "name", required=True, help="The name of the replay set.")
@on_ledger
def replay(engine: sa.Engine, *, since: datetime, model: str, version: str, url: str, name: str) -> None:
    """Let another version of a model answer what was asked, and keep its answers beside those given.

    What has been answered already in the same set is passed over, so that a replay can go on.
    """
    ledger = Ledger(engine)
    address = f"{url.rstrip('/')}/v1/models/{model}/versions/{version}/predict"
    done = sa.select(side_answers.c.prediction_id).where(
        side_answers.c.kind == "replay", side_answers.c.name == name
    )
    where = (
        predictions.c.time >= stamp(since),
        predictions.c.features.is_not(None),
        predictions.c.id.not_in(done),
    )
    pages = track(ledger.pages(0, *where), description=f"Replaying into {name}", console=console)
    rows = sum(_replayed(ledger, page, address, name) for page in pages)
    click.echo(f"{rows:,} requests answered by {model} {version}")


def _replayed(ledger: Ledger, page: Sequence[dict[str, Any]], address: str, name: str) -> int:
    """Ask about the rows of a page, and write what is answered."""
    body = {"records": [row["features"] for row in page]}
    try:
        reply = urllib3.request("POST", address, json=body, timeout=SECONDS, retries=False)
        answered = reply.json()
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise click.ClickException(f"{address} gave no answer: {error}") from None
    if reply.status != 200:  # noqa: PLR2004
        raise click.ClickException(f"{address} refused: {answered.get('detail', json.dumps(answered)[:200])}")
    now = stamp(datetime.now(UTC))
    digest = reply.headers.get("X-Model-Digest")
    named = (answered["model"], answered["version"], digest)
    ledger.append(
        Entry(
            side_answers=[
                SideAnswer(row["id"], "replay", name, now, *named, p, None, 200, None)
                for row, p in zip(page, answered["predictions"], strict=True)
            ]
        )
    )
    return len(page)
