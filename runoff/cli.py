"""The `runoff` command: versions and releases from a shell."""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any, TypeVar

import click
import urllib3
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from runoff.card import number, part, told
from runoff.management import Change, Management, parse_time
from runoff.management_api import MAX_TEXT, details, summary
from runoff.releases import Release, Served
from runoff.store import Store, StoreError

BOARD = "Where versions are: a folder, or a URL such as s3://bucket/models."
WATCH_SECONDS = 10.0
POLL_SECONDS = 0.2

Command = TypeVar("Command", bound=Callable[..., Any])

# What is piped is not cut to a terminal's width: ids are there to be pasted. What stands in a record is shown
# as it is: "[/x]" is no markup.
console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 200)


class Commands(click.Group):
    """The commands in the order of a version's life, and what fails in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (StoreError, OSError) as error:
            raise click.ClickException(str(error)) from None


def _open(ctx: click.Context, _: click.Parameter, board: str | None) -> None:
    """Open the store that is named after a command, or before it, or by default."""
    place = board or ctx.obj
    try:
        management = Management(Store.open(place))
        # A board is opened when it is asked for the first time.
        management.store.names()
    # An unknown protocol, a package or credentials that are not there: each file system has its own errors.
    except Exception as error:
        raise click.ClickException(f"the board {place} cannot be opened: {error}") from None
    ctx.obj = management


def on_board(command: Command) -> Command:
    """Give a command the management of a board, and the option that says which."""
    option = click.option("--board", expose_value=False, callback=_open, help=BOARD)
    return option(click.pass_obj(command))  # type: ignore[return-value]


def _text(_: click.Context, parameter: click.Parameter, text: str) -> str:
    if not 0 < len(text.strip()) <= MAX_TEXT:
        raise click.BadParameter(f"takes a text of 1 to {MAX_TEXT} characters", param=parameter)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    # A container may run as a user of no name.
    except (KeyError, OSError):
        raise click.UsageError("nobody knows your name here; give it by --by") from None


def examples(*lines: str) -> str:
    """What stands below a command's help; the first character keeps click from filling the lines."""
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


as_json = click.option("--json", "wants_json", is_flag=True, help="Answer in JSON, for programs.")
reason = click.option("--reason", required=True, callback=_text, help="Why; it is kept on record.")
by = click.option(
    "--by", default=_user, callback=_text, show_default="you", help="Your name, for the record."
)
watch = click.option(
    "--watch",
    "url",
    metavar="URL",
    help="A running service to wait for: fails if its self-test does, or if it has not switched in 10 s.",
)


class Runoff(Commands):
    """With the commands that other rooms add, by entry points named `runoff.commands`.

    None is imported before it is asked for.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *sorted(self._added().names)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        added = self._added()
        if cmd_name not in added.names:
            return super().get_command(ctx, cmd_name)
        command: click.Command = added[cmd_name].load()
        return command

    def _added(self) -> EntryPoints:
        return entry_points(group="runoff.commands")


@click.group(cls=Runoff, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--board", envvar="RUNOFF_BOARD", help=f"{BOARD} [env: RUNOFF_BOARD]")
@click.pass_context
def main(ctx: click.Context, board: str | None) -> None:
    """See, compare, release and roll back versions of models.

    A version is what a notebook stored. A release says which version a service answers from; running
    services follow within two seconds. VERSION is the id of a version, how it begins, or "newest".
    """
    ctx.obj = board


@main.command(epilog=examples("runoff models"))
@as_json
@on_board
def models(management: Management, *, wants_json: bool) -> None:
    """List the models, with what is live of each."""
    found = management.models()
    live = {name: management.live(name) for name in found}
    newest = {name: versions[-1].id if versions else None for name, versions in found.items()}
    if wants_json:
        return say_json(
            [
                {
                    "model": name,
                    "versions": len(versions),
                    "newest": newest[name],
                    "live": served.to_json() if (served := live[name]) else None,
                }
                for name, versions in found.items()
            ]
        )
    return say_table(
        ("model", "versions", "newest", "live"),
        [(name, len(versions), newest[name], _short(live[name])) for name, versions in found.items()],
        empty="the store holds no models: train some, with make train",
    )


@main.command(epilog=examples("runoff versions model-a"))
@click.argument("model")
@as_json
@on_board
def versions(management: Management, *, model: str, wants_json: bool) -> None:
    """List the versions of MODEL, oldest first."""
    found = management.store.versions(model) or [management.version(model)]
    if wants_json:
        return say_json([summary(version) for version in found])
    live = management.live(model)
    metrics = list(dict.fromkeys(name for version in found for name in part(version, "metrics")))
    return say_table(
        ("version", "stored", "algorithm", *metrics, "live"),
        [
            (
                version.id,
                f"{version.created:%Y-%m-%d %H:%M:%S}",
                version.record.get("algorithm", ""),
                *(_brief(part(version, "metrics").get(name)) for name in metrics),
                "live" if live and (live.model, live.version) == (model, version.id) else "",
            )
            for version in found
        ],
    )


@main.command(epilog=examples("runoff show model-a newest --json"))
@click.argument("model")
@click.argument("version", default="newest")
@as_json
@on_board
def show(management: Management, *, model: str, version: str, wants_json: bool) -> None:
    """Show everything that is known of a VERSION of MODEL."""
    found = management.version(model, version)
    if wants_json:
        return say_json(details(found))
    return click.echo(management.card(found, "md"), nl=False)


@main.command(
    epilog=examples(
        "runoff diff model-a 20261123T1354 newest", "runoff diff model-a newest newest --to-model model-b"
    )
)
@click.argument("model")
@click.argument("v1")
@click.argument("v2", default="newest")
@click.option("--to-model", help="The model of V2, if it is another.")
@as_json
@on_board
def diff(
    management: Management, *, model: str, v1: str, v2: str, to_model: str | None, wants_json: bool
) -> None:
    """Compare V1 of MODEL with V2: training, parameters, metrics, importance, schema."""
    found = management.diff(management.version(model, v1), management.version(to_model or model, v2))
    if wants_json:
        return say_json(found.to_json())
    parts = {
        "Training": found.about,
        "Parameters": found.parameters,
        "Metrics on held-out rows": found.metrics,
        "Importance, as loss of ROC AUC": found.importance,
        "Schema": found.schema,
    }
    if not any(parts.values()):
        click.echo("The two versions differ in nothing that is on record.")
    for title, changes in parts.items():
        if changes:
            say_table(
                ("", f"{found.before.name} {found.before.id}", f"{found.after.name} {found.after.id}"),
                [(change.name, _value(change.before), _value(change.after)) for change in _ordered(changes)],
                title=title,
            )
    return None


@main.command(epilog=examples('runoff release model-a newest --reason "trained on the data of October"'))
@click.argument("service")
@click.argument("version")
@click.option("--of", "of_model", help="The model of VERSION, if it is not named like the service.")
@reason
@by
@watch
@as_json
@on_board
def release(
    management: Management,
    *,
    service: str,
    version: str,
    of_model: str | None,
    reason: str,
    by: str,
    url: str | None,
    wants_json: bool,
) -> None:
    """Let SERVICE answer from VERSION from now on.

    The version is loaded and tested here first: its digests, its golden rows, and whether it takes what
    callers send to the one that is live. What fails is not released, and the exit code is 1.
    """
    chosen = management.version(of_model or service, version)
    made = management.release(service, chosen, by=by, reason=reason)
    _say_release(made, wants_json, {service: url})


@main.command(epilog=examples('runoff rollback model-a --reason "refuses clients of branch 7"'))
@click.argument("service")
@reason
@by
@watch
@as_json
@on_board
def rollback(
    management: Management, *, service: str, reason: str, by: str, url: str | None, wants_json: bool
) -> None:
    """Let SERVICE answer from what it answered from before.

    Another rollback goes back one further.
    """
    _say_release(management.rollback(service, by=by, reason=reason), wants_json, {service: url})


@main.command(epilog=examples('runoff swap model-a model-b --reason "B won the runoff"'))
@click.argument("one")
@click.argument("other")
@reason
@by
@click.option(
    "--watch", "urls", nargs=2, metavar="URL URL", help="The running services to wait for, ONE first."
)
@as_json
@on_board
def swap(
    management: Management,
    *,
    one: str,
    other: str,
    reason: str,
    by: str,
    urls: tuple[str, str] | None,
    wants_json: bool,
) -> None:
    """Let services ONE and OTHER exchange what they answer from, in one release.

    The services, their addresses and their shares of traffic stay; the versions change places.
    """
    made = management.swap(one, other, by=by, reason=reason)
    _say_release(made, wants_json, dict(zip((one, other), urls or (), strict=bool(urls))))


@main.command(epilog=examples('runoff live model-a --at "2026-11-17 14:05"'))
@click.argument("service")
@click.option("--at", metavar="TIME", help='A time, such as "2026-11-17 14:05"; by default now.')
@as_json
@on_board
def live(management: Management, *, service: str, at: str | None, wants_json: bool) -> None:
    """Say what SERVICE answers from, or answered from at a time."""
    served = management.live(service, _time(at) if at else None)
    if wants_json:
        return say_json(served and served.to_json())
    if served is None:
        raise click.ClickException(f"nothing was released to {service}{' then' if at else ' yet'}")
    return click.echo(f"{served.model} {served.version}")


@main.command(epilog=examples("runoff history model-a"))
@click.argument("service", required=False)
@as_json
@on_board
def history(management: Management, *, service: str | None, wants_json: bool) -> None:
    """List all releases, or those of SERVICE, oldest first."""
    found = management.history(service)
    if wants_json:
        return say_json([each.to_json() for each in found])
    return say_table(
        ("time (UTC)", "service", "serves", "by", "what", "why"),
        [
            (f"{each.time:%Y-%m-%d %H:%M:%S}", name, _short(served), each.by, each.action, each.reason)
            for each in found
            for name, served in each.changes.items()
        ],
        empty="nothing was released yet",
    )


@main.command(epilog=examples("runoff card model-a newest --html -o model-a.html"))
@click.argument("model")
@click.argument("version", default="newest")
@click.option("--html", is_flag=True, help="As a page that needs no network, instead of Markdown.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write it to a file.")
@on_board
def card(management: Management, *, model: str, version: str, html: bool, output: Path | None) -> None:
    """Write the model card of a VERSION of MODEL."""
    text = management.card(management.version(model, version), "html" if html else "md")
    if output:
        output.write_text(text, encoding="utf-8")
    else:
        click.echo(text, nl=False)


@main.command(epilog=examples("runoff serve --pin my-model --board s3://bucket/models"))
@click.option("--pin", required=True, help="The model to serve, by the name of its pin.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", default=8003, show_default=True, type=click.IntRange(1, 65535), help="The port.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Processes.")
@on_board
def serve(management: Management, *, pin: str, host: str, port: int, workers: int) -> None:
    """Serve any model of the store, with no code; one that vetiver pinned, too."""
    management.version(pin)
    os.environ["RUNOFF_BOARD"] = management.store.place
    os.environ["RUNOFF_SERVICE"] = pin
    arguments = ["--host", host, "--port", str(port), "--workers", str(workers)]
    # A process of its own: the server sets up its environment before anything is imported.
    os.execv(sys.executable, [sys.executable, "-m", "runoff.server", "runoff.pinned:app", *arguments])  # noqa: S606


@main.command(name="new-model", epilog=examples("runoff new-model model-c"))
@click.argument("name")
@click.option("--port", default=8003, show_default=True, type=click.IntRange(1, 65535), help="Its port.")
def new_model(name: str, port: int) -> None:
    """Write the few lines of a service for the model NAME, beside the others.

    Makes the folder of the service and its line in the Procfile, and says what to add to experiment.toml.
    """
    folder = Path(name.replace("-", "_"))
    if not folder.name.isidentifier() or name != name.lower():
        raise click.BadParameter("takes lower-case letters, digits and dashes, beginning with a letter")
    if folder.exists():
        raise click.ClickException(f"{folder} is there already")
    folder.mkdir()
    command = f"python -m runoff.server {folder}.app:app --port {port}"
    (folder / "__init__.py").write_text(
        f'"""{name} as a service of its own: `{command}`."""\n', encoding="utf-8"
    )
    (folder / "app.py").write_text(
        f'"""The prediction service of {name}."""\n\nfrom runoff.prediction import create_app\n\n'
        f'app = create_app("{name}")\n',
        encoding="utf-8",
    )
    procfile = Path("Procfile")
    if procfile.exists():
        procfile.write_text(
            f"{procfile.read_text(encoding='utf-8').rstrip()}\n{folder}: {command}\n", encoding="utf-8"
        )
    click.echo(
        f"{folder}/app.py is written. Store a version under the name {name}, then start it:\n\n"
        f"    {command}\n\n"
        "To give it a part of the traffic, add to experiment.toml:\n\n"
        f'    [[variants]]\n    name = "{name}"\n    role = "challenger"\n'
        f'    url = "http://127.0.0.1:{port}"\n    weight = 10'
    )


def _say_release(made: Release, wants_json: bool, urls: Mapping[str, str | None]) -> None:
    """Say what was released, and wait for the services whose URLs are given."""
    if wants_json:
        say_json(made.to_json())
    else:
        for name, served in made.changes.items():
            click.echo(f"{name} answers from {served.model} {served.version} from now on")
    for service, url in urls.items():
        if url:
            _wait(url, made.changes[service])
            if not wants_json:
                click.echo(f"{url} has switched")


def _wait(url: str, served: Served) -> None:
    """Wait until all workers of a running service answer from a version.

    Raises:
        ClickException: its self-test failed, or it has not switched in WATCH_SECONDS.
    """
    deadline = time.monotonic() + WATCH_SECONDS
    told = "it does not answer"
    while time.monotonic() < deadline:
        try:
            state: dict[str, Any] = _ask(url, "metadata").json()["user"]["release"]
            serving = _versions_served(_ask(url, "metrics").data.decode())
        except (urllib3.exceptions.HTTPError, ValueError, LookupError, TypeError):
            pass
        else:
            # One worker tells what it serves itself, and all of them count in the metrics. A worker that was
            # asked nothing yet counts nowhere: it looks for releases before its first answer.
            if state["serving"] == served.to_json() and serving <= {(served.model, served.version)}:
                return
            told = state["failed"] or "it still answers from another version"
            if state["wanted"] == served.to_json() and state["failed"]:
                break
        time.sleep(POLL_SECONDS)
    raise click.ClickException(f"{url} has not switched: {told}")


def _ask(url: str, path: str) -> urllib3.BaseHTTPResponse:
    return urllib3.request("GET", f"{url.rstrip('/')}/{path}", timeout=2.0, retries=False)


def _versions_served(metrics: str) -> set[tuple[str, str]]:
    """The versions, with their models, from which at least one worker answers."""
    return {
        (sample.labels["model"], sample.labels["version"])
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "runoff_model_workers" and sample.value
    }


def _time(text: str) -> datetime:
    try:
        return parse_time(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time; write it as 2026-11-17 14:05") from None


def _short(served: Served | None) -> str:
    return f"{served.model} {served.version}" if served else ""


def _brief(figure: Any) -> str:
    plain = number(figure)
    return "" if plain is None else f"{plain:.4f}"


def _value(value: Any) -> str:
    return "–" if value is None else told(value)


def _ordered(changes: Sequence[Change]) -> list[Change]:
    """By how much they changed, where they are numbers; else as they come."""
    numbers = all(
        isinstance(each, int | float) for change in changes for each in (change.before, change.after)
    )
    return (
        sorted(changes, key=lambda change: -abs(change.after - change.before)) if numbers else list(changes)
    )


def say_json(value: Any) -> None:
    """Answer a program."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say_table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None, empty: str = ""
) -> None:
    """Answer with a table, or where it has no rows with a line that says so."""
    if not rows:
        return click.echo(empty)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in header:
        table.add_column(name, no_wrap=name in ("version", "newest", "live", "serves", "time (UTC)"))
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return console.print(table)


if __name__ == "__main__":
    main(prog_name="runoff")
