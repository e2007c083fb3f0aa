"""Whatever is wrong with a request, its caller is told field and rule, and nothing is half recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dashboard.app import create_app
from tests.house import House, Visitor, served

MEGABYTE = 1_000_000

# The services that take records.
TAKE_RECORDS = ("model_a", "model_b", "router")


def changed(**changes: Any) -> dict[str, Any]:
    return {"change": changes}


def without(*names: str) -> dict[str, Any]:
    return {"drop": names}


# What is done to a good record: then the status, the pointer, the rule, and a part of the detail.
BROKEN_RECORDS = [
    ("a missing field", without("AGE"), "/AGE", "required", "AGE is missing"),
    ("every field missing", {"body": {}}, "/LIMIT_BAL", "required", "LIMIT_BAL is missing"),
    ("an extra field", changed(HEIGHT=180), "/HEIGHT", "additionalProperties", "HEIGHT is not a column"),
    ("the client's ID as a field", changed(ID=7), "/ID", "additionalProperties", "ID is not a column"),
    (
        "a misspelt field",
        {"rename": ("PAY_2", "PAY_1")},
        "/PAY_1",
        "additionalProperties",
        "did you mean PAY_2?",
    ),
    (
        "a field in lower case",
        {"rename": ("AGE", "age")},
        "/age",
        "additionalProperties",
        "age is not a column",
    ),
    (
        "a name with a slash",
        changed(**{"a/b~": 1}),
        "/a~1b~0",
        "additionalProperties",
        "a/b~ is not a column",
    ),
    ("a very long name", changed(**{"x" * 5000: 1}), "/" + "x" * 5000, "additionalProperties", "xxx…"),
    ("a code that cannot be", changed(SEX=3), "/SEX", "enum", "SEX must be one of 1, 2"),
    ("a payment code that cannot be", changed(PAY_0=10), "/PAY_0", "enum", "PAY_0 must be one of -2"),
    ("a string for a number", changed(AGE="34"), "/AGE", "type", "AGE must be a whole number"),
    ("an empty string", changed(AGE=""), "/AGE", "type", "AGE must be a whole number"),
    ("a boolean for a number", changed(SEX=True), "/SEX", "type", "SEX must be a whole number"),
    ("null", changed(AGE=None), "/AGE", "type", "AGE must be a whole number"),
    ("a fraction for a whole number", changed(AGE=34.5), "/AGE", "type", "AGE must be a whole number"),
    ("nearly a whole number", changed(AGE=34.0000000001), "/AGE", "type", "AGE must be a whole number"),
    ("an object for a number", changed(AGE={"years": [34]}), "/AGE", "type", "AGE must be a whole number"),
    ("a list for a number", changed(AGE=[34]), "/AGE", "type", "AGE must be a whole number"),
    ("NaN", changed(AGE=float("nan")), "/AGE", "type", "AGE must be a finite number"),
    ("Infinity", changed(BILL_AMT1=float("inf")), "/BILL_AMT1", "type", "BILL_AMT1 must be a finite number"),
    ("a number beyond floats", changed(BILL_AMT1=10**400), "/BILL_AMT1", "type", "BILL_AMT1 must be"),
    (
        "a whole number too great",
        changed(BILL_AMT1=10**300),
        "/BILL_AMT1",
        "maximum",
        "BILL_AMT1 must be at most",
    ),
    ("an age below all ages", changed(AGE=-1), "/AGE", "minimum", "AGE must be at least"),
    ("an age above all ages", changed(AGE=1000), "/AGE", "maximum", "AGE must be at most"),
]

# A body as it is: then the status and a part of the detail.
BROKEN_BODIES = [
    ("empty", b"", 400, "the body is empty"),
    ("white space", b" \n ", 400, "the body is empty"),
    ("cut off", b'{"AGE": 3', 400, "not JSON"),
    ("two documents", b"{} {}", 400, "not JSON"),
    ("no JSON", b"AGE=34&SEX=1", 400, "not JSON"),
    ("not UTF-8", b'{"AGE": "\xff"}', 400, "not UTF-8"),
    ("nested too deeply", b"[" * 200_000, 400, "nested too deeply"),
    ("a number of 5,000 digits", b'{"AGE": ' + b"9" * 5000 + b"}", 400, "too many digits"),
    ("a string", b'"hello"', 422, "neither a record"),
    ("a number", b"42", 422, "neither a record"),
    ("null", b"null", 422, "neither a record"),
    ("an empty list", b"[]", 422, "one or more"),
    ("a list of numbers", b"[1, 2]", 422, "a record is an object"),
    ("lists in lists", b"[[[[1]]]]", 422, "a record is an object"),
    ("an empty list of records", b'{"records": []}', 422, "one or more"),
    ("too few numbers as text", b'{"input": "1,2,3"}', 422, "input holds 3 values; this model takes 23"),
    ("words as text", b'{"input": "' + b"x," * 22 + b'x"}', 422, "LIMIT_BAL must be a whole number"),
    ("ten megabytes", b"[" + b"1," * 5 * MEGABYTE + b"1]", 413, "longer than 1,000,000 bytes"),
]

# On any service: the method, the path, headers, then the status and a part of the detail.
BROKEN_REQUESTS = [
    ("model_a", "PUT", "/predict", {}, 405, "/predict does not take PUT"),
    ("model_a", "GET", "/predict", {}, 405, "/predict does not take GET"),
    ("model_a", "DELETE", "/metadata", {}, 405, "/metadata does not take DELETE"),
    ("model_a", "POST", "/", {}, 405, "/ does not take POST"),
    ("model_a", "POST", "/prototype", {}, 405, "/prototype does not take POST"),
    ("model_a", "POST", "/readyz", {}, 405, "/readyz does not take POST"),
    ("model_a", "GET", "/nothing", {}, 404, "/nothing is not an address"),
    ("model_a", "POST", "/predict", {"Content-Type": "text/plain"}, 415, "Content-Type is text/plain"),
    ("model_a", "GET", "/metadata", {"X-Request-ID": "a b"}, 400, "X-Request-ID takes"),
    ("router", "PATCH", "/predict", {}, 405, "/predict does not take PATCH"),
    ("router", "POST", "/predictions", {}, 405, "/predictions does not take POST"),
    ("router", "DELETE", "/v1/predictions", {}, 405, "/v1/predictions does not take DELETE"),
    ("router", "POST", "/stats", {}, 405, "/stats does not take POST"),
    ("router", "GET", "/v2/nothing", {}, 404, "/v2/nothing is not an address"),
    (
        "router",
        "POST",
        "/predict",
        {"Content-Type": "application/x-www-form-urlencoded"},
        415,
        "Content-Type is",
    ),
    ("router", "POST", "/predict", {"X-Request-ID": "x" * 129}, 400, "X-Request-ID takes"),
    ("router", "POST", "/predict", {"X-Traffic-Tag": "NO WAY"}, 400, "X-Traffic-Tag takes"),
    ("router", "GET", "/predictions?since=-1", {}, 400, "since takes a whole number"),
    ("router", "GET", "/predictions?since=yesterday", {}, 400, "since takes a whole number"),
    ("router", "GET", "/predictions?since=" + "9" * 40, {}, 400, "since takes a whole number"),
    ("router", "GET", "/predictions?limit=0", {}, 400, "limit takes a whole number"),
    ("router", "GET", "/predictions?limit=1001", {}, 400, "limit takes a whole number"),
    ("router", "GET", "/predictions?last=5000", {}, 400, "last takes a whole number"),
    ("router", "GET", "/predictions?tag=%F0%9F%92%A3", {}, 400, "tag takes"),
    ("router", "GET", "/stats?tag=a'%20OR%201=1", {}, 400, "tag takes"),
    ("dashboard", "PUT", "/", {}, 405, "/ does not take PUT"),
    ("dashboard", "POST", "/readyz", {}, 405, "/readyz does not take POST"),
    ("dashboard", "GET", "/assets/nothing.js", {}, 404, "/assets/nothing.js is not an address"),
    ("dashboard", "GET", "/_dash-component-suites/no/x.js", {}, 404, "is not an address"),
]

# Of the router: the address, the parameter, the rule that it breaks, and what was sent.
BROKEN_PARAMETERS = [
    ("/predictions?since=-1", "since", "minimum", "-1"),
    ("/predictions?limit=1001", "limit", "maximum", "1001"),
    ("/v1/predictions?last=all", "last", "type", "all"),
    ("/v1/predictions?from=noon", "from", "format", "noon"),
    ("/v1/predictions?to=25:00", "to", "format", "25:00"),
    ("/v1/predictions?outcome=yes", "outcome", "anyOf", "yes"),
    ("/v1/stats?tag=Real", "tag", "pattern", "Real"),
    ("/v1/drift", "variant", "required", None),
    ("/v1/drift?variant=A&rows=5001", "rows", "maximum", "5001"),
    ("/v1/drift?variant=A&from=noon", "from", "format", "noon"),
    ("/v1/audit?since=now", "since", "pattern", "now"),
    ("/v1/plan?difference=none", "difference", "type", "none"),
    ("/v1/audit?limit=many", "limit", "type", "many"),
]
BROKEN_HEADERS = [
    ("X-Request-ID", "pattern", "a b"),
    ("X-Traffic-Tag", "pattern", "NO WAY"),
    ("X-Unit-ID", "pattern", "u" * 300),
    ("Idempotency-Key", "pattern", "k" * 129),
    ("X-Force-Variant", "enum", "nobody"),
]

# To the address at which a page asks the dashboard what changed: the body, the status, a part of the detail.
BROKEN_UPDATES = [
    ("empty", b"", 400, "the body is empty"),
    ("cut off", b'{"output": ', 400, "not JSON"),
    ("a list", b"[1]", 422, "names no output"),
    ("no output", b"{}", 422, "names no output"),
    ("a list for an output", b'{"output": [1]}', 422, "names no output"),
    ("an output that is none", b'{"output": "x.y", "inputs": []}', 422, "names no output"),
    ("junk for an output", b'{"output": "x", "inputs": {"deep": [[[]]]}}', 422, "names no output"),
    (
        "junk for inputs",
        b'{"output": "comparison.children", "inputs": [1, "x"]}',
        422,
        "inputs must be a list of objects",
    ),
    (
        "junk for state",
        b'{"output": "comparison.children", "inputs": [], "state": "x"}',
        422,
        "state must be a list",
    ),
    ("ten megabytes", b"[" + b"1," * 5 * MEGABYTE + b"1]", 413, "longer than 1,000,000 bytes"),
]


def visitor(house: House, service: str) -> Visitor:
    found: Visitor = getattr(house, service)
    return found


def broken(client: dict[str, int], how: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = {
        name: value for name, value in client.items() if name not in how.get("drop", ())
    }
    if "rename" in how:
        old, new = how["rename"]
        record[new] = record.pop(old)
    return dict(how.get("body", record | how.get("change", {})))


def assert_problem(reply: Any, status: int, detail: str) -> None:
    assert reply.status == status, reply.body[:500]
    assert reply.headers["Content-Type"] == "application/problem+json"
    problem = reply.json
    assert problem["status"] == status
    assert problem["type"].startswith("urn:runoff:problem:")
    assert problem["request_id"] == reply.headers["X-Request-ID"]
    assert detail in json.dumps(problem, ensure_ascii=False)
    assert len(reply.body) < 10_000 + 2 * len(detail), "an answer must not give back what was sent"


@pytest.fixture(scope="module")
def dashboard() -> Iterator[Visitor]:
    with served(create_app().server) as url:
        yield Visitor(url)


@pytest.mark.parametrize("service", TAKE_RECORDS)
@pytest.mark.parametrize(
    ("how", "pointer", "rule", "detail"),
    [case[1:] for case in BROKEN_RECORDS],
    ids=[c[0] for c in BROKEN_RECORDS],
)
def test_a_broken_record_is_refused_by_field_and_rule(
    house: House,
    client: dict[str, int],
    service: str,
    how: dict[str, Any],
    pointer: str,
    rule: str,
    detail: str,
) -> None:
    before = len(house.on_disk())
    reply = visitor(house, service).asks(broken(client, how))
    assert_problem(reply, 422, detail)
    assert (pointer, rule) in [(error["pointer"], error["rule"]) for error in reply.errors]
    assert_nothing_half_recorded(house, before)


@pytest.mark.parametrize("service", TAKE_RECORDS)
@pytest.mark.parametrize(
    ("body", "status", "detail"), [case[1:] for case in BROKEN_BODIES], ids=[c[0] for c in BROKEN_BODIES]
)
def test_a_broken_body_is_refused(house: House, service: str, body: bytes, status: int, detail: str) -> None:
    before = len(house.on_disk())
    assert_problem(visitor(house, service).sends(body), status, detail)
    assert_nothing_half_recorded(house, before)


@pytest.mark.parametrize(
    ("service", "method", "path", "headers", "status", "detail"),
    BROKEN_REQUESTS,
    ids=[f"{case[0]} {case[1]} {case[2][:40]} {case[4]}" for case in BROKEN_REQUESTS],
)
def test_a_broken_request_is_refused(
    house: House,
    dashboard: Visitor,
    client: dict[str, int],
    service: str,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    detail: str,
) -> None:
    before = len(house.on_disk())
    body = json.dumps(client).encode() if method in ("POST", "PUT", "PATCH") else b""
    asked = dashboard if service == "dashboard" else visitor(house, service)
    assert_problem(asked.sends(body, path, method, **headers), status, detail)
    assert len(house.on_disk()) == before


@pytest.mark.parametrize(("path", "name", "rule", "value"), BROKEN_PARAMETERS)
def test_a_broken_parameter_is_refused_by_its_name_rule_and_value(
    house: House, path: str, name: str, rule: str, value: str | None
) -> None:
    reply = house.router.gets(path)
    assert_problem(reply, 400, name)
    [error] = reply.errors
    assert (error["pointer"], error["rule"], error["value"]) == (f"/{name}", rule, value)
    assert value is None or value in reply.json["detail"]


@pytest.mark.parametrize(("name", "rule", "value"), BROKEN_HEADERS)
def test_a_broken_header_is_refused_by_its_name_rule_and_value(
    house: House, client: dict[str, int], name: str, rule: str, value: str
) -> None:
    reply = house.router.asks(client, **{name: value})
    assert_problem(reply, 422 if rule == "enum" else 400, f"{name} takes")
    [error] = reply.errors
    assert (error["pointer"], error["rule"], error["value"][:40]) == (f"/{name}", rule, value[:40])


@pytest.mark.parametrize("body", [b"42", b"null ", b'"text"'])
def test_outcomes_that_are_none_are_refused(house: House, body: bytes) -> None:
    reply = house.router.sends(body, "/v1/outcomes")
    assert_problem(reply, 422, "a report or a list of reports")
    assert reply.errors[0]["rule"] == "type"


@pytest.mark.parametrize(
    ("body", "status", "detail"), [case[1:] for case in BROKEN_UPDATES], ids=[c[0] for c in BROKEN_UPDATES]
)
def test_what_no_page_sends_is_refused_by_the_dashboard(
    dashboard: Visitor, body: bytes, status: int, detail: str
) -> None:
    assert_problem(dashboard.sends(body, "/_dash-update-component"), status, detail)


def test_one_broken_row_refuses_the_batch_and_is_named_by_its_number(
    house: House, client: dict[str, int]
) -> None:
    reply = house.router.asks([client, client | {"AGE": "old"}, client])
    assert_problem(reply, 422, "AGE must be a whole number")
    assert [error["pointer"] for error in reply.errors] == ["/1/AGE"]


def test_a_body_of_unknown_length_is_limited_too(house: House) -> None:
    chunks = (b"[" + b"1," * MEGABYTE for _ in range(3))
    assert house.router.sends(chunks).status == 413


def test_a_problem_shows_the_value_but_never_the_rest_of_the_record(
    house: House, client: dict[str, int]
) -> None:
    reply = house.model_a.asks(client | {"AGE": "x" * 1000, "LIMIT_BAL": 12_345_678})
    assert reply.errors[0]["value"] == "x" * 40 + "…"
    assert b"12345678" not in reply.body


def assert_nothing_half_recorded(house: House, before: int) -> None:
    """A request that the model refused is one whole entry without a prediction; any other is none."""
    added = house.on_disk()[before:]
    assert len(added) <= 1
    for row in added:
        assert row["status"] == 422
        assert row["prediction"] is None
        assert row["problem"]
        assert row["variant"] in ("A", "B")
