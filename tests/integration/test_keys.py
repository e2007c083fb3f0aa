"""Keys: who may do what, how often, and that nothing of a key is left lying about."""

from __future__ import annotations

from pathlib import Path

import pytest

from router import database
from router.keys import OPERATOR_KEY, SCOPES, Guard, Keys, KeyTrouble, must_have_keys
from runoff.problems import Forbidden, TooManyRequests, Unauthorized, Unavailable
from tests import databases


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(database.connect(databases.ledger("sqlite", tmp_path)))


def guard(keys: Keys, **environment: str) -> Guard:
    made = Guard(keys, environment)
    made.refresh()
    return made


@pytest.mark.parametrize("held", SCOPES)
@pytest.mark.parametrize("wanted", SCOPES)
def test_a_key_opens_what_it_is_for_and_the_operators_opens_all(keys: Keys, held: str, wanted: str) -> None:
    key = keys.add("mine", held)  # type: ignore[arg-type]
    if held in (wanted, "operator"):
        assert guard(keys).admit(f"Bearer {key}", wanted).name == "mine"  # type: ignore[arg-type]
    else:
        with pytest.raises(Forbidden, match=f"mine may {held}"):
            guard(keys).admit(f"Bearer {key}", wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("sent", [None, "", "Bearer", "Bearer ", "Bearer runoff_guessed", "Basic abc"])
def test_whoever_has_no_key_is_told_so(keys: Keys, sent: str | None) -> None:
    keys.add("mine", "read")
    with pytest.raises(Unauthorized) as refused:
        guard(keys).admit(sent, "read")
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"


def test_without_any_key_everybody_may_do_everything(keys: Keys) -> None:
    assert guard(keys).is_open
    assert guard(keys).admit(None, "operator").name == "anybody"


def test_revoking_the_last_key_lets_nobody_in(keys: Keys) -> None:
    key = keys.add("mine", "operator")
    watching = guard(keys)
    keys.revoke("mine")
    watching.refresh()
    with pytest.raises(Unauthorized, match="revoked"):
        watching.admit(f"Bearer {key}", "read")
    with pytest.raises(KeyTrouble):
        keys.revoke("mine")
    with pytest.raises(KeyTrouble):
        keys.add("mine", "read")


def test_nobody_is_let_in_before_the_keys_were_read(keys: Keys) -> None:
    with pytest.raises(Unavailable):
        Guard(keys, {}).admit("Bearer x", "read")


def test_the_operators_key_may_come_from_the_environment(keys: Keys) -> None:
    given = guard(keys, **{OPERATOR_KEY: "secret"})
    assert given.admit("Bearer secret", "operator").scope == "operator"
    with pytest.raises(Unauthorized):
        given.admit(None, "read")


def test_a_key_is_not_kept(keys: Keys, tmp_path: Path) -> None:
    key = keys.add("mine", "read")
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"mine" in on_disk
    assert key.encode() not in on_disk
    assert key.removeprefix("runoff_").encode() not in on_disk


def test_a_key_with_a_rate_is_told_when_to_come_back(keys: Keys) -> None:
    key = keys.add("mine", "predict", per_second=0.5)
    watching = guard(keys)
    watching.admit(f"Bearer {key}", "predict")
    with pytest.raises(TooManyRequests) as refused:
        watching.admit(f"Bearer {key}", "predict")
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 2
    # Reading the keys anew gives it no more.
    watching.refresh()
    with pytest.raises(TooManyRequests):
        watching.admit(f"Bearer {key}", "predict")


@pytest.mark.parametrize(
    ("host", "must"),
    [
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("10.1.2.3", True),
        ("router.example", True),
    ],
)
def test_only_on_loopback_may_a_router_run_without_keys(host: str, must: bool) -> None:
    assert must_have_keys(host) is must
