"""`runoff verdict`: which model stays, from a shell, by the router's REST API."""

from __future__ import annotations

import os
from urllib.parse import urlencode

import click
from rich.console import Console
from rich.markdown import Markdown

from router.cli import KEY, URL, Router
from runoff.cli import as_json, examples, say_json


@click.command(
    epilog=examples(
        "runoff verdict", "runoff verdict --tag all --json", "runoff verdict --markdown > verdict.md"
    )
)
@click.option(
    "--url", envvar=URL, default="http://127.0.0.1:8000", show_default=True, help=f"The router. [env: {URL}]"
)
@click.option("--tag", default="real", show_default=True, help="Of which traffic; all for any.")
@click.option("--replay", metavar="NAME", help="Compare the champion with a replay set.")
@click.option("--markdown", is_flag=True, help="A page to keep, as Markdown.")
@as_json
def verdict(*, url: str, tag: str, replay: str | None, markdown: bool, wants_json: bool) -> None:
    """Say which variant stays, and what that rests on.

    One may look as often as one likes: the intervals and e-values hold at every moment at once. Outcomes
    count of requests that are older than the experiment's maturity; simulated traffic counts only where its
    tag is asked for.
    """
    router = Router(url, os.environ.get(KEY))
    asked = {"tag": tag} | ({"replay": replay} if replay else {})
    path = f"verdict?{urlencode(asked)}"
    if wants_json:
        return say_json(router.get(path))
    page = router.page(path)
    if markdown:
        return click.echo(page, nl=False)
    return Console().print(Markdown(page))


if __name__ == "__main__":
    verdict(prog_name="runoff verdict")
