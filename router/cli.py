"""`runoff experiment`: the experiment from a shell, by the router's REST API."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import click
import urllib3

from router.experiment import Experiment, ExperimentError, load, read
from runoff.cli import Commands, as_json, by, examples, reason, say_json, say_table

URL = "RUNOFF_ROUTER_URL"
KEY = "RUNOFF_OPERATOR_KEY"
SECONDS = 10.0

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Router:
    """A running router, asked with the key that is in the environment: arguments can be seen by others."""

    url: str
    key: str | None

    def get(self, path: str) -> Any:
        """What an address under `/v1/` answers."""
        return self._ask("GET", path)[0]

    def ask(self, method: str, path: str, body: Any) -> Any:
        """The answer of an address under `/v1/` to a question that changes nothing."""
        return self._ask(method, path, body)[0]

    def page(self, path: str) -> str:
        """The page of Markdown at an address under `/v1/`."""
        response = self._answer("GET", path, None, {"Accept": "text/markdown"})
        return response.data.decode()

    def change(self, path: str, body: Any, version: int | None, method: str = "POST") -> Any:
        """Change the experiment; the state then.

        Args:
            path: of the change, under `/v1/`.
            body: JSON.
            version: which one is changed; None for the one in force, whichever it is.
            method: of the request.
        """
        etag = self._ask("GET", "experiment")[1] if version is None else f'"{version}"'
        return self._ask(method, path, body, {"If-Match": etag})[0]

    def _ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[Any, str]:
        """The answer and its ETag."""
        response = self._answer(method, path, body, headers or {})
        try:
            return response.json(), response.headers.get("ETag", "")
        except ValueError:
            raise self._no_router() from None

    def _answer(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        sent = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            response = urllib3.request(
                method,
                f"{self.url.rstrip('/')}/v1/{path}",
                json=body,
                headers=sent | dict(headers),
                timeout=SECONDS,
                retries=False,
            )
            refused = response.status >= 400 and response.json()["detail"]  # noqa: PLR2004
        except urllib3.exceptions.HTTPError as error:
            raise click.ClickException(f"the router at {self.url} does not answer: {error}") from None
        except (ValueError, LookupError, TypeError):
            raise self._no_router() from None
        if refused:
            raise click.ClickException(refused)
        return response

    def _no_router(self) -> click.ClickException:
        return click.ClickException(f"what answers at {self.url} is no router")


def changes(command: Command) -> Command:
    """Give a command what all changes take: why, by whom, and of which version."""
    version = click.option(
        "--version",
        type=click.IntRange(1),
        metavar="N",
        help="Refuse if another version than N is in force: somebody has changed it since you looked.",
    )
    return reason(by(version(as_json(click.pass_obj(command)))))  # type: ignore[return-value]


DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Only say what would become of the outcomes that are known."
)


@click.group(cls=Commands)
@click.option(
    "--url", envvar=URL, default="http://127.0.0.1:8000", show_default=True, help=f"The router. [env: {URL}]"
)
@click.pass_context
def experiment(ctx: click.Context, url: str) -> None:
    """See and change how traffic is split between variants.

    Every change is kept with its reason, is in force in all workers within a second, and can be taken back:
    set the document of before, or ramp to the share of before. Changing takes the operator's key, in
    RUNOFF_OPERATOR_KEY, where the router has keys.
    """
    ctx.obj = Router(url, os.environ.get(KEY))


@experiment.command(
    epilog=examples("runoff experiment show", "runoff experiment show --document > experiment.json")
)
@click.option(
    "--document", "only_document", is_flag=True, help="The document alone, in JSON, as set takes it."
)
@as_json
@click.pass_obj
def show(router: Router, *, only_document: bool, wants_json: bool) -> None:
    """Show the experiment, and the shares that are in force."""
    document = router.get("experiment")
    if only_document:
        return say_json(document)
    state = router.get("experiment/state")
    if wants_json:
        return say_json({**state, "document": document})
    begun = _begun(document)
    say_table(
        ("variant", "role", "share", "of the document", "url"),
        [
            (
                each["name"],
                each["role"],
                f"{state['weights'][each['name']]:.1%}",
                f"{begun.get(each['name'], 0):.1%}",
                each["url"],
            )
            for each in document["variants"]
        ],
        title=f"{state['experiment']}, mode {state['mode']}, version {state['version']}" + _still(state),
    )
    click.echo(
        f"\nin force since {state['since'][:19].replace('T', ' ')} UTC, by {state['by']}"
        f" ({state['action']}): {state['reason']}"
    )
    if judged := state["judged"]:
        click.echo(f"its gates say {judged['says']}: {judged['reason']}")
    return None


@experiment.command(
    name="set",
    epilog=examples(
        'runoff experiment set experiment.toml --reason "a third variant"',
        "runoff experiment show --document > e.json; $EDITOR e.json",
        'runoff experiment set e.json --version 3 --reason "matures in 30 days"',
    ),
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@DRY_RUN
@changes
def set_(
    router: Router, *, file: Path, dry_run: bool, version: int | None, wants_json: bool, **why: str
) -> None:
    """Make the document in FILE, TOML or JSON, the next version.

    It is the whole document. Where it leaves the split as it is, the shares in force stay, else the
    experiment begins with the document's shares. A pause or a hold goes on. What becomes of the outcomes is
    said before.
    """
    document = _read(file).model_dump(mode="json")
    if _foreseen(router, {"document": document}, wants_json=wants_json, dry_run=dry_run):
        path = f"experiment?{urlencode(why, quote_via=quote)}"
        _say(router.change(path, document, version, "PUT"), wants_json)


@experiment.command(epilog=examples('runoff experiment pause --reason "B answers nonsense"'))
@changes
def pause(router: Router, *, version: int | None, wants_json: bool, **why: str) -> None:
    """Send all traffic to the champion, and let nothing count until it is resumed."""
    _say(router.change("experiment/pause", why, version), wants_json)


@experiment.command(epilog=examples('runoff experiment hold --reason "until the month has closed"'))
@changes
def hold(router: Router, *, version: int | None, wants_json: bool, **why: str) -> None:
    """Keep a canary or a bandit at the shares that it has, until it is resumed.

    Everything still counts; what a canary's guardrails, or the bandit, would have done is said in the
    router's log.
    """
    _say(router.change("experiment/hold", why, version), wants_json)


@experiment.command(epilog=examples('runoff experiment resume --reason "B is repaired"'))
@changes
def resume(router: Router, *, version: int | None, wants_json: bool, **why: str) -> None:
    """End a pause or a hold, with the shares of before."""
    _say(router.change("experiment/resume", why, version), wants_json)


def _share(_: click.Context, parameter: click.Parameter, text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise click.BadParameter("takes a share such as 30% or 0.3", param=parameter)
    return share


@experiment.command(
    epilog=examples(
        'runoff experiment ramp 30% --reason "nothing broke at 10%"',
        'runoff experiment ramp 0.5 --variant B --reason "B against all others"',
    )
)
@click.argument("share", callback=_share)
@click.option("--variant", help="Whose share; by default that of the only challenger.")
@changes
def ramp(
    router: Router, *, share: float, variant: str | None, version: int | None, wants_json: bool, **why: str
) -> None:
    """Give a variant the SHARE of the traffic; the others share the rest in proportion.

    Of the units only those move that must. A canary goes on from there, also if it was held; at 0% it stays.
    """
    asked = {**why, "share": share} | ({"variant": variant} if variant else {})
    _say(router.change("experiment/ramp", asked, version), wants_json)


@experiment.command(epilog=examples('runoff experiment promote B --reason "B is better by 0.4 points"'))
@click.argument("variant")
@click.option("--override", metavar="VARIANT", help="Its name again, to promote it against the evidence.")
@DRY_RUN
@changes
def promote(
    router: Router,
    *,
    variant: str,
    override: str | None,
    dry_run: bool,
    version: int | None,
    wants_json: bool,
    **why: str,
) -> None:
    """Make VARIANT the champion, with all of the traffic.

    Refused where a trust check or a guardrail of the verdict is not met, and the reason said. What becomes of
    the outcomes is said before.
    """
    asked = {**why, "variant": variant} | ({"override": override} if override else {})
    if _foreseen(router, {"promote": variant}, wants_json=wants_json, dry_run=dry_run):
        _say(router.change("experiment/promote", asked, version), wants_json)


@experiment.command(epilog=examples("runoff experiment phases", "runoff verdict --phase 2"))
@click.option("--tag", default="real", show_default=True, help="The traffic to count: real, a tag, or all.")
@as_json
@click.pass_obj
def phases(router: Router, *, tag: str, wants_json: bool) -> None:
    """List the phases: which models answered since when, and how many outcomes are known of each.

    Another model, another split or other rules of decision begin one, and who takes that back goes on with
    the one before. What was recorded in one stays with it.
    """
    told = router.get("phases" + ("" if tag == "all" else f"?{urlencode({'tag': tag})}"))
    if wants_json:
        return say_json(told)
    return say_table(
        ("phase", "begun (UTC)", "since", "models", "decided by", "requests", "outcomes"),
        [
            (
                f"{each['phase']}" + (" (now)" if each["in_force"] else ""),
                each["begun"][:19].replace("T", " "),
                ", ".join(each["because"]),
                ", ".join(f"{name} {_model(model)}" for name, model in each["models"].items()),
                f"{each['metric'] or '?'}, {each['mode'] or '?'}",
                f"{each['requests']:,}",
                f"{each['outcomes']:,}",
            )
            for each in told["phases"]
        ],
        empty="nothing was recorded yet",
    )


def _model(told: Mapping[str, str | None]) -> str:
    """A model by its version, or what else its service tells."""
    return told["version"] or (told["digest"] or "")[:12] or told["model"] or "(tells no version)"


def _foreseen(router: Router, change: Any, *, wants_json: bool, dry_run: bool) -> bool:
    """Say what a change would end, before it is made, beside the answer; whether it is to be made."""
    told = router.ask("POST", "phases/next", change)
    if wants_json and dry_run:
        say_json(told)
    else:
        click.echo(told["says"], err=not dry_run)
    return not dry_run


@experiment.command(epilog=examples("runoff experiment history --last 5"))
@click.option("--last", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many.")
@as_json
@click.pass_obj
def history(router: Router, *, last: int, wants_json: bool) -> None:
    """List the last changes, of the document and of the shares, oldest first."""
    entries = router.get(f"audit?last={last}")["entries"]
    if wants_json:
        return say_json(entries)
    return say_table(
        ("time (UTC)", "version", "what", "by", "why", "shares"),
        [
            (
                each["time"][:19].replace("T", " "),
                each["cursor"],
                each["action"],
                each["by"],
                each["reason"],
                _shares(each["weights"] or _begun(each["document"])),
            )
            for each in entries
        ],
    )


def _read(file: Path) -> Experiment:
    try:
        if file.suffix == ".json":
            return read(json.loads(file.read_text(encoding="utf-8")))
        return load(file)
    except (ExperimentError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def _begun(document: Any) -> Mapping[str, float]:
    """The shares with which a document begins; none where it was written by a release with other fields."""
    try:
        return read(document).shares
    except ExperimentError:
        return {}


def _say(state: Any, wants_json: bool) -> None:
    if wants_json:
        return say_json(state)
    return click.echo(f"version {state['version']} is in force{_still(state)}: {_shares(state['weights'])}")


def _still(state: Any) -> str:
    """What is said of an experiment that is stopped."""
    return ", paused" if state["paused"] else ", held" if state["held"] else ""


def _shares(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:.1%}" for name, weight in weights.items())


if __name__ == "__main__":
    experiment(prog_name="runoff experiment")
