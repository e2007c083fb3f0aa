"""The whole loop, from training to a first burst of traffic."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import urllib3

from data.credit import BadData
from launch.progress import Voice, stopped
from launch.services import SERVICES, LaunchError, Services
from notebooks import train
from router import experiment
from router.keys import OPERATOR_KEY
from runoff.management import Management
from runoff.store import Store, StoreError
from traffic import faults
from traffic.clients import held_out
from traffic.plan import TAG, Plan
from traffic.send import Sender, Sent, send_now
from verdict.split import share_interval

ROOT = Path(__file__).resolve().parent.parent
BURST = 500
CONCURRENCY = 4
SEED = 2009
ALL_WELL = 200

# Errors that are no fault of ours: the command says their message, and nothing else.
EXPECTED = (
    LaunchError,
    train.TrainingFailed,
    BadData,
    FileNotFoundError,
    experiment.ExperimentError,
    StoreError,
)


def run(voice: Voice, ports: Mapping[str, int], *, smoke: bool) -> int:
    """Train, start, send the burst, and stay up; return an exit code.

    Args:
        voice: says how it goes.
        ports: of the services, by name.
        smoke: stop after the burst; the exit code says whether all of it went through.
    """
    var = Path(os.environ.get("RUNOFF_VAR") or ROOT / "var").resolve()
    os.environ.setdefault("RUNOFF_BOARD", str(var / "models"))
    services: Services | None = None
    try:
        _train(voice)
        services = Services(ports, var, os.environ)
        _start(voice, services)
        went_through = _burst(voice, services)
        if smoke:
            return 0 if went_through else 1
        voice.say("\nUp until Ctrl-C.")
        _stay(voice, services)
    except EXPECTED as error:
        voice.say(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        return stopped(voice, smoke=smoke)
    finally:
        if services:
            services.stop()
            voice.say("All services are stopped.")
    return 0


def _train(voice: Voice) -> None:
    """Execute the notebooks of which the store holds no version of this data and code.

    A version that is trained here is released here; where none is trained, releases stay as they are.
    """
    management = Management(Store.open())
    for name in train.NOTEBOOKS:
        version = train.trained(management.store, name)
        trained = version is None
        if version is None:
            with voice.progress(f"Training {name} by its notebook", train.count_cells(name)) as advance:
                version = train.train_one(management.store, name, advance)
        if trained or management.live(name) is None:
            management.release(name, version, by="make run", reason="trained on these data by this code")
        area = version.record["metrics"]["roc_auc"]["value"]
        voice.say(
            f"{name} {version.id}: {version.record['algorithm']}, ROC AUC {area:.3f} on held-out clients"
        )


def _start(voice: Voice, services: Services) -> None:
    with voice.progress("Starting the services", len(SERVICES)) as advance:
        ready: list[str] = []

        def on_ready(name: str) -> None:
            ready.append(name)
            advance(len(ready))

            if name == "router":
                _mend(voice, services.urls[name])

        services.start(on_ready)
    voice.say(", ".join(f"{name} {url}" for name, url in services.urls.items()))


def _mend(voice: Voice, router: str) -> None:
    """Take back what a simulation left behind that was killed: a variant that is broken on purpose."""
    try:
        for name in faults.mend(router, os.environ.get(OPERATOR_KEY)):
            voice.say(f"{name} was left broken by a simulation that was killed, and is mended.")
    except (faults.CannotBreak, aiohttp.ClientError, OSError) as error:
        voice.say(f"What a simulation left broken cannot be mended: {error}")


def _burst(voice: Voice, services: Services) -> bool:
    """Send real held-out clients through the router, and say what came back; true if all were answered."""
    url = services.urls["router"]
    before = _recorded(url)
    began = time.perf_counter()
    replies: list[Sent] = []
    with voice.progress(f"Sending {BURST} held-out clients", BURST) as advance:

        def on_sent(reply: Sent) -> None:
            replies.append(reply)
            advance(len(replies))

        sender = Sender(url, tag=TAG, key=os.environ.get(OPERATOR_KEY), max_in_flight=CONCURRENCY, waits=True)
        send_now(Plan(seed=SEED).at_once(BURST), sender, on_sent)
    seconds = time.perf_counter() - began
    answered = [reply for reply in replies if reply.status == ALL_WELL]
    voice.say(
        f"{len(answered)} of {len(replies)} answered in {seconds:.1f} s, {_recorded(url) - before} on record"
    )
    for problem, count in Counter(r.problem for r in replies if r.status != ALL_WELL).most_common(3):
        voice.say(f"  {count} failed: {problem}")
    if answered:
        _summarize(voice, answered)
    _invite(voice, services)
    return len(answered) == BURST


def _summarize(voice: Voice, answered: list[Sent]) -> None:
    """The observed split with its always-valid interval, and the latency that the sender saw."""
    counts = Counter(reply.variant for reply in answered)
    for name, share in experiment.load().shares.items():
        lower, upper = share_interval(counts[name], len(answered), share)
        verdict = "as configured" if lower <= share <= upper else "not as configured"
        voice.say(
            f"  variant {name}: {counts[name]} requests, {counts[name] / len(answered):.1%} "
            f"(always-valid 95% interval {lower:.1%} to {upper:.1%}, configured {share:.0%}: {verdict})"
        )
    milliseconds = sorted(1000 * reply.seconds for reply in answered)
    p99 = statistics.quantiles(milliseconds, n=100, method="inclusive")[98]
    voice.say(f"  latency: median {statistics.median(milliseconds):.1f} ms, p99 {p99:.1f} ms")


def _invite(voice: Voice, services: Services) -> None:
    router = services.urls["router"]
    record = json.dumps(next(iter(held_out(1, seed=SEED))), separators=(",", ":"))
    voice.say(f"\nDashboard  {services.urls['dashboard']}\nRouter     {router}\n\nAsk it yourself:\n")
    key = f' -H "Authorization: Bearer ${OPERATOR_KEY}"' if os.environ.get(OPERATOR_KEY) else ""
    voice.say(f"curl -s {router}/predict -H 'Content-Type: application/json'{key} -d '{record}'")


def _recorded(router: str) -> int:
    key = os.environ.get(OPERATOR_KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    told = urllib3.request("GET", f"{router}/v1/stats", headers=headers, timeout=10.0, retries=False)
    return int(told.json()["requests"])


def _stay(voice: Voice, services: Services) -> None:
    """Stay up; say so once when a service ends. The others go on: the dashboard names what is down."""
    told: set[str] = set()
    while True:
        for name in set(services.dead()) - told:
            told.add(name)
            voice.say(f"\n{name} has stopped. {services.log_tail(name)}")
        time.sleep(0.5)
