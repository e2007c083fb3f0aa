"""The prediction service: one model, whichever way it is asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from flask.testing import FlaskClient
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from runoff.prediction import create_app
from runoff.prototype import Prototype
from runoff.store import Store
from tests.house import House, running


def comma_separated(client: dict[str, int], features: tuple[str, ...]) -> str:
    return ",".join(str(client[name]) for name in features)


def offline(store: Store, client: dict[str, int]) -> float:
    return float(store.load("model-a").probabilities(pd.DataFrame([client]))[0])


def test_a_record_is_answered_with_a_probability_the_model_and_its_version(
    house: House, store: Store, client: dict[str, int]
) -> None:
    reply = house.model_a.asks(client)
    version = store.version("model-a")
    assert reply.json == {
        "prediction": offline(store, client),
        "model": "model-a",
        "version": version.id,
    }
    assert 0 <= reply.prediction <= 1
    assert reply.headers["X-Model-Name"] == "model-a"
    assert reply.headers["X-Model-Version"] == version.id
    assert reply.headers["X-Model-Digest"] == version.digest


def test_the_order_of_the_columns_does_not_matter(house: House, client: dict[str, int]) -> None:
    reply = house.model_a.asks(dict(reversed(client.items())))
    assert reply.json == house.model_a.asks(client).json


def test_whole_numbers_may_be_written_as_floats(house: House, client: dict[str, int]) -> None:
    floats = {name: float(value) for name, value in client.items()}
    assert house.model_a.asks(floats).json == house.model_a.asks(client).json


@pytest.mark.parametrize("prefix", ["", "4711,"], ids=["23 numbers", "24 numbers, an ID first"])
def test_the_request_of_the_2020_original_is_answered_alike(
    house: House, client: dict[str, int], features: tuple[str, ...], prefix: str
) -> None:
    reply = house.model_a.asks({"input": prefix + comma_separated(client, features)})
    assert reply.json == house.model_a.asks(client).json
    # What its clients do with the answer.
    assert float(json.loads(reply.body)["prediction"]) == reply.prediction


def test_a_list_of_records_is_answered_as_vetiver_does(
    house: House, store: Store, clients: list[dict[str, int]]
) -> None:
    reply = house.model_a.asks(clients[:5])
    assert reply.json == {"predict": [offline(store, client) for client in clients[:5]]}
    extra = [client | {"ID": 7} for client in clients[:5]]
    assert house.model_a.asks(extra).json == reply.json, "vetiver ignores columns that it does not know"
    assert house.model_a.sends(json.dumps(clients[:5]).encode(), "/predict/").json == reply.json


def test_records_are_answered_as_a_batch_of_ours(house: House, clients: list[dict[str, int]]) -> None:
    reply = house.model_a.asks({"records": clients[:5]})
    assert reply.json["predictions"] == house.model_a.asks(clients[:5]).json["predict"]
    assert reply.json["model"] == "model-a"


def test_the_service_says_what_it_is(house: House, store: Store) -> None:
    version = store.version("model-a")
    index = house.model_a.gets("/").json
    assert index["model"] == "model-a"
    assert index["version"] == version.id
    metadata = house.model_a.gets("/metadata").json
    assert set(metadata) == {"user", "version", "url", "required_pkgs", "python_version"}
    assert metadata["version"] == version.id
    assert metadata["required_pkgs"] == ["scikit-learn"]
    assert metadata["python_version"] == list(sys.version_info[:2])
    assert metadata["user"]["digest"] == version.digest
    assert metadata["user"]["record"] == version.record


def test_the_prototype_is_a_schema_with_an_example_that_the_model_takes(
    house: House, features: tuple[str, ...]
) -> None:
    schema = house.model_a.gets("/prototype").json
    assert (schema["title"], schema["type"]) == ("prototype", "object")
    assert tuple(schema["required"]) == features
    assert schema["properties"]["SEX"]["enum"] == [1, 2]
    assert schema["properties"]["LIMIT_BAL"]["x-seen"]["maximum"] > 0
    example = {name: properties["example"] for name, properties in schema["properties"].items()}
    assert house.model_a.asks(example).status == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_health_is_green_when_all_is_well(house: House, path: str) -> None:
    for service in (house.model_a, house.model_b, house.router):
        assert service.gets(path).status == 200


def test_a_request_id_is_echoed_and_made_where_there_is_none(house: House, client: dict[str, int]) -> None:
    assert house.model_a.asks(client, X_Request_ID="mine-1").headers["X-Request-ID"] == "mine-1"
    made = {house.model_a.asks(client).headers["X-Request-ID"] for _ in range(5)}
    assert len(made) == 5


def test_a_service_without_a_version_is_up_but_not_ready_and_says_why(
    client: dict[str, int], tmp_path: Path
) -> None:
    with running(tmp_path / "var", tmp_path / "empty", "model_a") as house:
        reply = house.model_a.gets("/readyz")
        assert reply.status == 503
        assert reply.json["checks"]["model"] == "the store holds no version of 'model-a'"
        refused = house.model_a.asks(client)
        assert refused.status == 503
        assert refused.headers["Retry-After"] == "10"
        assert house.model_a.gets("/livez").status == 200


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[FlaskClient, pd.DataFrame, Any]:
    """A service whose model takes numbers, truth values and words, some of which may be missing."""
    frame = pd.DataFrame(
        {
            "job": pd.Categorical(
                ["clerk", "cook", "clerk", "none"] * 10, categories=["clerk", "cook", "none"]
            ),
            "age": [23, 45, 31, 60] * 10,
            "income": [1.5, None, 2.2, 3.1] * 10,
            "owner": [True, False, False, True] * 10,
        }
    )
    estimator = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["job"]), remainder="passthrough"),
        HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=2),
    ).fit(frame, [0, 1, 0, 1] * 10)
    own = Store.open(tmp_path)
    own.write("mixed", estimator, prototype=Prototype.from_frame(frame), record={})
    return create_app("mixed", store=own).test_client(), frame, estimator


def test_a_model_of_mixed_columns_is_served_as_it_was_trained(
    mixed: tuple[FlaskClient, pd.DataFrame, Any],
) -> None:
    service, frame, estimator = mixed
    records = json.loads(frame.head(4).to_json(orient="records"))
    assert records[1]["income"] is None
    answer = service.post("/predict", json=records).get_json()
    assert answer == {"predict": estimator.predict_proba(frame.head(4))[:, 1].tolist()}


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"job": "pilot"}, "job must be one of clerk, cook, none"),
        ({"job": 7}, "job must be a string"),
        ({"owner": 1}, "owner must be a boolean"),
        ({"owner": None}, "owner must be a boolean"),
        ({"age": None}, "age must be a whole number"),
    ],
)
def test_a_model_of_mixed_columns_refuses_what_it_was_not_trained_on(
    mixed: tuple[FlaskClient, pd.DataFrame, Any], change: dict[str, Any], detail: str
) -> None:
    good = {"job": "cook", "age": 30, "income": None, "owner": True}
    assert mixed[0].post("/predict", json=good).status_code == 200
    refused = mixed[0].post("/predict", json=good | change)
    assert refused.status_code == 422
    assert refused.get_json()["detail"] == detail
