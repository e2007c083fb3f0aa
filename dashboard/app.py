"""The dashboard's server: `python -m runoff.server dashboard.app:app --port 8050 --workers 1`.

Each page is a module that knows its address, its layout and what keeps it up to date; `dashboard/shell.py` is
what stands around it. One process only: it keeps the simulation that it runs in memory.
"""

from __future__ import annotations

import os
from typing import cast

from dash import Dash
from dash.exceptions import DependencyException
from flask import Response, request

from dashboard import acting, drift, experiment, live, load, models, shell, verdict
from dashboard.router_client import RouterClient
from dashboard.simulation import Simulator
from runoff import web
from runoff.problems import FieldError, Invalid, NotFound
from traffic.load_process import Loader
from traffic.runs import Runs, targets

DEFAULT_ROUTER = "http://127.0.0.1:8000"
# Its own key at a router that asks for keys: one that may read.
KEY = "RUNOFF_DASHBOARD_KEY"

# Where Dash's script asks for what changed.
UPDATE = "/_dash-update-component"
# Where Dash shows a page, whatever the address.
ANY = "/<path:path>"

PAGES = cast(list[shell.Page], [live, verdict, models, load, drift, experiment])


def create_app() -> Dash:
    """Make the dashboard of the router at ROUTER_URL."""
    # Of the pages only one is there at a time.
    app = Dash(
        __name__,
        title="Runoff",
        update_title="",
        assets_folder="assets",
        suppress_callback_exceptions=True,
        on_error=shell.tell_of,
    )
    # Dash takes only a fixed prefix, which would hold in one place. Relative to the page, its addresses hold
    # below any prefix, whether a proxy or a server tells of it or not.
    app.config.unset_read_only(["requests_pathname_prefix"])
    app.config.requests_pathname_prefix = "./"
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.layout = shell.layout(PAGES)
    web.equip(app.server, checks={})
    _refuse_what_no_page_sends(app)
    router = RouterClient(os.environ.get("ROUTER_URL") or DEFAULT_ROUTER, os.environ.get(KEY))
    simulator = Simulator(router.url, os.environ.get(KEY))
    app.server.before_request(simulator.begin)
    shell.register(app, router, PAGES)
    verdict.register(app, router)
    acting.register(app, router, simulator)
    live.register(app, router, simulator)
    experiment.register(app, router)
    models.register(app, router)
    load.register(app, router, Loader(targets(os.environ, router.url), Runs.open()))
    drift.register(app, router)
    return app


def _refuse_what_no_page_sends(app: Dash) -> None:
    """Answer requests that Dash's own script never makes with a problem: Dash itself would fail on them."""

    def check() -> None:
        known = {f"/{page.PATH}" for page in PAGES}
        if request.url_rule and request.url_rule.rule == ANY and request.path not in known:
            raise NotFound(f"{request.path} is not an address of this service")
        if request.path != UPDATE or request.method != "POST":
            return
        body = web.json_body()
        if not isinstance(body, dict) or str(body.get("output")) not in app.callback_map:
            detail = "the body names no output of this page"
            raise Invalid(detail, errors=[FieldError("/output", "enum", detail)])
        for name in ("inputs", "state"):
            parts = body.get(name, [])
            if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
                detail = f"{name} must be a list of objects"
                raise Invalid(detail, errors=[FieldError(f"/{name}", "type", detail, parts)])

    def no_such_library(_error: DependencyException) -> Response:
        return web.answer_problem(NotFound(f"{request.path} is not an address of this service"))

    app.server.before_request(check)
    app.server.register_error_handler(DependencyException, no_such_library)


app = create_app()
