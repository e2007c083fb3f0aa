"""Which version a service answers from, and how that changes between two requests.

A service follows the releases of its name. When there is a new one, the version is loaded and tested beside
the one that answers, and takes its place if it passes. If it fails, the old one stays, and the failure is
told. Until there is a release, a service answers from the newest version that it found when it started.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

from pydantic_core import to_json

from runoff import metrics, processes
from runoff.evaluators import Matrix
from runoff.problems import Invalid, NotFound, Unavailable
from runoff.records import UNSEEN, RecordReader
from runoff.releases import Releases, Served
from runoff.store import LoadedModel, NoSuchVersion, Store, StoreError, UnfaithfulVersion

POLL_SECONDS = 0.5
# Versions besides the live one that are kept in memory for those who ask for them by name.
KEPT = 4
# How far a service goes back at its start, when what was released last cannot be served.
MAX_STEPS_BACK = 5

TOKEN = re.compile(r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*")

log = logging.getLogger(__name__)


class IncompatibleVersion(StoreError):
    """The version does not take what callers send to the one that is live."""


@dataclass(frozen=True)
class Ready:
    """A version in memory, tested, with the reader of its input."""

    model: LoadedModel
    reader: RecordReader

    @property
    def served(self) -> Served:
        version = self.model.version
        return Served(version.name, version.id, version.digest)

    def is_what(self, served: Served) -> bool:
        """Whether this is the version that was released, the very file of it."""
        version = self.model.version
        named = (served.model, served.version) == (version.name, version.id)
        return named and served.digest in (None, self.model.digest)

    @cached_property
    def signature(self) -> bytes:
        """How our answers end in JSON: with the model, the version and the line, for those who curl."""
        version = self.model.version
        return b'"model":%b,"version":%b}\n' % (to_json(version.name), to_json(version.id))

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """The headers by which an answer names the version."""
        version = self.model.version
        return [
            ("X-Model-Name", version.name),
            ("X-Model-Version", version.id),
            ("X-Model-Digest", self.model.digest),
            ("Cache-Control", "no-store"),
        ]

    def predict(self, rows: Matrix, *, seen: bool = False) -> tuple[list[float], list[tuple[str, str]]]:
        """Predict rows, and count what is worth counting.

        Args:
            rows: shape (n, features), as the reader gives them.
            seen: whether it is known already that training saw all of their values.

        Returns:
            The n probabilities, and the headers of an answer: which version it is from, and in which columns,
            in how many rows, there are values that training never saw.

        Raises:
            Invalid: the model gives no probability for one of them.
        """
        try:
            probabilities = self.model.evaluator.probabilities(rows).tolist()
        # So scikit-learn says that it does not take a value; the prototype may allow more than it does.
        except ValueError as error:
            log.warning("%s does not take what its prototype allows: %s", self.model.version.id, error)
            raise Invalid("the model does not take these values, though its prototype allows them") from None
        if any(map(math.isnan, probabilities)):
            raise Invalid("the model gives no probability for these values: they are too extreme for it")
        metrics.ROWS.observe(len(rows))
        headers = self.names.copy()
        if not seen and (unseen := self.reader.unseen(rows)):
            for column, count in unseen.items():
                metrics.UNSEEN.labels(column).inc(count)
            headers.append((UNSEEN, ", ".join(f"{_item(column)};rows={n}" for column, n in unseen.items())))
        return probabilities, headers


def _item(name: str) -> str:
    """The name of a column in a list of RFC 9651: a token, or where it is none a display string."""
    if TOKEN.fullmatch(name):
        return name
    return '%"' + re.sub("%..", lambda escaped: escaped[0].lower(), quote(name, safe=" ")) + '"'


def load_tested(store: Store, served: Served, live: Served | None = None) -> Ready:
    """Load a version and test it as a service does before it answers from it.

    Args:
        store: where it is.
        served: which version; its digest, where it has one, must be that of the file.
        live: the version whose callers it is to answer: it must take the rows that they send.

    Raises:
        StoreError: it fails; the class says how, the message why.
    """
    model = store.load(served.model, served.version)
    if served.digest not in (None, model.digest):
        raise StoreError(f"{served.model} {served.version} is not the file that was released")
    try:
        reader = RecordReader(model.version.prototype)
        # The first prediction costs ten times the others: it is made before a client waits for it.
        model.evaluator.probabilities(reader.read([model.version.prototype.example], at=""))
    # Whatever an estimator fails with, that was stored without rows to test it by.
    except Exception as error:
        reason = f"{served.model} {served.version} cannot predict its own example: {error}"
        raise UnfaithfulVersion(reason) from error
    if live and (rows := _rows_of_callers(store, live)):
        try:
            reader.read(rows, at="/{}")
        except Invalid as problem:
            raise IncompatibleVersion(
                f"{served.model} {served.version} refuses what {live.version} takes: {problem.detail}"
            ) from None
    return Ready(model, reader)


def _rows_of_callers(store: Store, live: Served) -> list[Mapping[str, Any]]:
    """Rows such as callers send to the version that is live: those of its golden rows that it takes."""
    try:
        version = store.version(live.model, live.version)
        golden = store.golden_rows(version)
    except StoreError as error:
        # It may be damaged, or gone: that must not hold back what is to replace it.
        log.warning("nothing shows what callers of %s %s send: %s", live.model, live.version, error)
        return []
    reader = RecordReader(version.prototype)
    taken: list[Mapping[str, Any]] = []
    for row in golden.rows if golden else [version.prototype.example]:
        # Of training there may be rows that are not allowed any more.
        with contextlib.suppress(Invalid):
            reader.read([row], at="")
            taken.append(row)
    return taken


class Live:
    """The version that a service answers from, followed from release to release."""

    def __init__(self, name: str, store: Store, version_id: str | None = None) -> None:
        """Load what the service is to answer from; where that fails it is up all the same, and says why.

        Args:
            name: of the service, under which versions are released to it.
            store: where versions and releases are.
            version_id: a version to stay on, whatever is released.
        """
        self.name = name
        self.store = store
        self.releases = Releases(store)
        self.wanted: Served | None = None
        self.failure: str | None = None
        self._pinned = version_id
        self.current: Ready | None = None
        self._token = ""
        self._watched_by: int | None = None
        self._told: tuple[str, ...] = ()
        self._trouble = ""
        # Done with each look at the releases, for what is worth knowing twice a second.
        self.at_each_look: Callable[[], None] = lambda: None
        self._others: OrderedDict[Served, Ready] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._begin()

    def now(self) -> Ready:
        """The version to answer from.

        Raises:
            Unavailable: there is none.
        """
        current = self.current
        if current is None:
            raise Unavailable(self.failure or "nothing is loaded yet", headers={"Retry-After": "10"})
        return current

    def version(self, model: str, version_id: str) -> Ready:
        """Any stored version, from memory or loaded for this.

        Raises:
            NotFound: there is no such version.
            Unavailable: it cannot be served.
        """
        current = self.current
        if current and (model, version_id) == (current.served.model, current.served.version):
            return current
        wanted = Served(model, version_id, None)
        # One at a time: a burst for versions that are not in memory must not fill it.
        with self._loading:
            if wanted in self._others:
                self._others.move_to_end(wanted)
                return self._others[wanted]
            try:
                ready = load_tested(self.store, wanted)
            except NoSuchVersion as error:
                raise NotFound(str(error)) from None
            except StoreError as error:
                raise Unavailable(str(error)) from None
            self._others[wanted] = ready
            if len(self._others) > KEPT:
                self._others.popitem(last=False)
            return ready

    def state(self) -> dict[str, Any]:
        """What was released, what this process answers from, and why it is another, where it is."""
        return {
            "wanted": self.wanted.to_json() if self.wanted else None,
            "serving": self.current.served.to_json() if self.current else None,
            "failed": self.failure,
        }

    def check(self) -> None:
        """Raise StoreError with the reason if there is nothing to answer from."""
        if self.current is None:
            raise StoreError(self.failure or "nothing is loaded yet")

    def watch(self) -> None:
        """Follow the releases from now on, in this process.

        Called with each request, since only a process that answers any needs to follow, and since a thread
        would not survive the fork by which a server may have made this process.
        """
        if self._watched_by == processes.number():
            return
        with self._lock:
            if self._watched_by != processes.number():
                self._tell()
                self._try_to_follow()
                threading.Thread(target=self._keep_following, name="releases", daemon=True).start()
                self._watched_by = processes.number()

    def _begin(self) -> None:
        """Load what was released last, or the last before it that can be served, or the newest version."""
        failures = []
        try:
            token = self.releases.token()
            self.wanted = self._wanted()
            candidates = [self.wanted]
            if not self._pinned:
                released = [release.changes[self.name] for release in self.releases.all(self.name)]
                before = dict.fromkeys(each for each in reversed(released) if each != self.wanted)
                candidates += [*before][:MAX_STEPS_BACK]
            for served in candidates:
                try:
                    self.current = load_tested(self.store, served)
                except StoreError as error:
                    failures.append(str(error))
                    self._fail(served, error)
                else:
                    break
            self._token = token
        # The board may be away: the service follows as soon as it is back.
        except Exception as error:
            failures.append(str(error))
            log.warning("%s cannot load what it is to serve: %s", self.name, error)
        self.failure = failures[0] if failures else None

    def _wanted(self) -> Served:
        if self._pinned:
            return Served(self.name, self._pinned, None)
        released = self.releases.live(self.name)
        if released:
            return released
        if self.current:
            return self.current.served
        newest = self.store.version(self.name)
        return Served(newest.name, newest.id, newest.digest)

    def _keep_following(self) -> None:
        stop = threading.Event()
        while not stop.wait(POLL_SECONDS):
            self.at_each_look()
            self._try_to_follow()

    def _try_to_follow(self) -> None:
        try:
            self._follow()
        # The board may be away for a while; what is loaded goes on answering.
        except Exception as error:
            if repr(error) != self._trouble:
                log.exception("%s cannot follow its releases", self.name)
            self._trouble = repr(error)
        else:
            self._trouble = ""

    def _follow(self) -> None:
        """Switch to what was released last, if that is another version and passes its test."""
        token = self.releases.token()
        # While there is nothing to answer from, each look may find the first version, or a repaired one.
        if token == self._token and self.current:
            return
        try:
            self.wanted = wanted = self._wanted()
        except NoSuchVersion as error:
            self.failure = str(error)
            return
        if self.current and self.current.is_what(wanted):
            self.failure = None
        else:
            try:
                ready = load_tested(self.store, wanted, self._callers_of())
            except StoreError as error:
                if (token, str(error)) != (self._token, self.failure):
                    self._fail(wanted, error)
                self.failure = str(error)
            else:
                self.current, self.failure = ready, None
                log.info("%s now answers from %s %s", self.name, wanted.model, wanted.version)
                self._tell()
        self._token = token

    def _callers_of(self) -> Served | None:
        """The version whose callers the next one must suit; None where one must be able to go back."""
        last = self.releases.last(self.name)
        back = last is not None and last.action == "rollback"
        return self.current.served if self.current and not back else None

    def _fail(self, served: Served, error: StoreError) -> None:
        metrics.SELF_TEST_FAILURES.labels(self.name, served.version).inc()
        log.warning("%s does not switch to %s: %s", self.name, served.version, error)

    def _tell(self) -> None:
        """Count this worker to the version that it answers from."""
        if self._told:
            metrics.WORKERS.labels(*self._told).set(0)
        if self.current:
            model = self.current.model
            self._told = (model.version.name, model.version.id, model.digest, model.evaluator.name)
            metrics.WORKERS.labels(*self._told).set(1)
