"""The clients of other systems, from an environment that has nothing of ours, get what they expect.

vetiver's client has a page of its own, since it wants an environment of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from launch import environment
from runoff.prediction import create_app
from runoff.prototype import Prototype
from runoff.store import Store
from tests.house import House, run_in, running, served

pytestmark = pytest.mark.slow

LOCK = Path(__file__).with_name("requirements-clients.txt")

Clients = list[dict[str, int]]

TRITON = """
import json, sys
import numpy as np
from tritonclient.http import InferInput, InferRequestedOutput, InferenceServerClient
from tritonclient.utils import InferenceServerException

host, binary, whole = sys.argv[1], sys.argv[2] == "binary", sys.argv[3] == "one tensor"
clients = json.load(sys.stdin)
client = InferenceServerClient(host)
about = client.get_model_metadata("model-a")
kinds = {"INT64": np.int64, "FP64": np.float64}
if whole:
    names = [tensor["name"] for tensor in about["inputs"]]
    arrays = {"rows": ("FP64", np.array([[float(each[name]) for name in names] for each in clients]))}
else:
    arrays = {
        tensor["name"]: (
            tensor["datatype"],
            np.array([each[tensor["name"]] for each in clients], kinds[tensor["datatype"]]),
        )
        for tensor in about["inputs"]
    }
inputs = []
for name, (datatype, values) in arrays.items():
    inputs.append(InferInput(name, list(values.shape), datatype))
    inputs[-1].set_data_from_numpy(values, binary_data=binary)
usual = client.infer("model-a", inputs, request_id="mine")
outputs = [InferRequestedOutput(name, binary_data=binary) for name in ("predict", "class")]
both = client.infer("model-a", inputs, outputs=outputs)
refused = ""
try:
    client.infer("model-a", [InferInput("nothing", [1], "FP64").set_data_from_numpy(np.zeros(1))])
except InferenceServerException as error:
    refused = f"{error.status()} {error.message()}"
print(json.dumps({
    "ready": [client.is_server_live(), client.is_server_ready(), client.is_model_ready("model-a")],
    "extensions": client.get_server_metadata()["extensions"],
    "versions": about["versions"],
    "predict": usual.as_numpy("predict").tolist(),
    "id": usual.get_response()["id"],
    "version": usual.get_response()["model_version"],
    "again": both.as_numpy("predict").tolist(),
    "class": both.as_numpy("class").tolist(),
    "refused": refused,
}))
"""

TRITON_TEXT = """
import json, sys
import numpy as np
from tritonclient.http import InferInput, InferenceServerClient

given = json.load(sys.stdin)
inputs = []
for name, kind, dtype in (("colour", "BYTES", object), ("size", "FP32", np.float32)):
    values = np.array(given[name], dtype).reshape(-1, 1)
    inputs.append(InferInput(name, list(values.shape), kind).set_data_from_numpy(values))
print(json.dumps(InferenceServerClient(sys.argv[1]).infer("mine", inputs).as_numpy("predict").tolist()))
"""

ORIGINAL = """
import json, sys
import requests

texts = json.load(sys.stdin)
answers = [requests.post(sys.argv[1], json={"input": text}).json() for text in texts]
print(json.dumps([float(answer["prediction"]) for answer in answers]))
"""

VALID = """
import json, sys
from openapi_spec_validator import OpenAPIV31SpecValidator

print(json.dumps([str(error) for error in OpenAPIV31SpecValidator(json.load(sys.stdin)).iter_errors()]))
"""

GENERATED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from client import Client
from client.api.model import get_metadata
from client.api.predictions import post_predict
from client.api.service import get_readyz
from client.models import PostPredictClass, Record, Records, WiderRecord

clients = json.load(sys.stdin)
with Client(sys.argv[2], raise_on_unexpected_status=True) as client:
    one = post_predict.sync(client=client, body=Record.from_dict(clients[0]), class_=PostPredictClass.TRUE)
    many = post_predict.sync(client=client, body=Records([Record.from_dict(each) for each in clients]))
    listed = post_predict.sync(client=client, body=[WiderRecord.from_dict(each) for each in clients])
    broken = post_predict.sync_detailed(client=client, body=Record.from_dict(clients[0] | {"AGE": 7}))
    print(json.dumps({
        "ready": get_readyz.sync(client=client).status.value,
        "version": get_metadata.sync(client=client).version,
        "one": one.to_dict(),
        "many": many.predictions,
        "listed": listed.predict,
        "broken": [broken.status_code.value, broken.parsed.errors[0].pointer, broken.parsed.errors[0].rule],
    }))
"""

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)
KEY = "open-sesame"


@pytest.fixture(scope="module")
def their_python() -> Path:
    """The interpreter of an environment with these clients."""
    return environment.of(LOCK)


def offline(store: Store, clients: Clients) -> list[float]:
    found: list[float] = store.load("model-a").probabilities(pd.DataFrame(clients)).tolist()
    return found


def host(url: str) -> str:
    return url.removeprefix("http://")


@pytest.mark.parametrize("tensors", ["a tensor a column", "one tensor"])
@pytest.mark.parametrize("form", ["binary", "JSON"])
def test_tritonclient_gets_probabilities_and_classes(
    their_python: Path, house: House, store: Store, clients: Clients, form: str, tensors: str
) -> None:
    told = run_in(their_python, TRITON, host(house.model_a.url), form, tensors, given=clients[:50])
    wanted = offline(store, clients[:50])
    version = store.version("model-a")
    assert told["ready"] == [True, True, True]
    assert told["extensions"] == ["binary_tensor_data"]
    assert told["versions"] == [version.id]
    assert (told["predict"], told["id"], told["version"]) == (wanted, "mine", version.id)
    assert told["again"] == wanted
    assert told["class"] == [int(p >= version.record["threshold"]) for p in wanted]
    assert told["refused"].startswith("422 LIMIT_BAL is missing")


def test_tritonclient_sends_text(their_python: Path, tmp_path: Path) -> None:
    X = pd.DataFrame({"colour": ["red", "blue", "grün", "red"], "size": [0.5, 1.5, 2.5, 4.0]})
    encoder = make_column_transformer((OneHotEncoder(), ["colour"]), remainder="passthrough")
    model = make_pipeline(encoder, LogisticRegression()).fit(X, [0, 1, 1, 0])
    store = Store.open(tmp_path)
    store.write("mine", model, prototype=Prototype.from_frame(X), record={}, examples=X)
    with served(create_app("mine", store=store)) as url:
        told = run_in(their_python, TRITON_TEXT, host(url), given=X.to_dict("list"))
    assert told == pytest.approx(model.predict_proba(X)[:, 1].tolist(), abs=1e-6)


@pytest.mark.parametrize("form", ["dataframe_split", "dataframe_records", "instances", "inputs", "csv"])
def test_the_requests_of_mlflows_documentation_are_answered_by_curl(
    house: House, store: Store, clients: Clients, form: str
) -> None:
    frame = pd.DataFrame(clients[:3])
    bodies = {
        "dataframe_split": {"dataframe_split": frame.to_dict("split")},
        "dataframe_records": {"dataframe_records": frame.to_dict("records")},
        "instances": {"instances": frame.to_numpy().tolist()},
        "inputs": {"inputs": frame.to_dict("list")},
    }
    kind = "text/csv" if form == "csv" else "application/json"
    body = frame.to_csv(index=False) if form == "csv" else json.dumps(bodies[form])
    command = ["curl", "-sS", f"{house.model_a.url}/invocations", "-H", f"Content-Type: {kind}"]
    told = subprocess.run(
        [*command, "--data-binary", "@-"], input=body, capture_output=True, text=True, check=True
    )
    assert json.loads(told.stdout) == {"predictions": offline(store, clients[:3])}


def test_the_client_of_2020_gets_a_number(
    their_python: Path, house: House, store: Store, clients: Clients
) -> None:
    texts = [",".join(map(str, [number, *each.values()])) for number, each in enumerate(clients[:5])]
    assert run_in(their_python, ORIGINAL, f"{house.model_a.url}/predict", given=texts) == offline(
        store, clients[:5]
    )


@pytest.mark.parametrize("name", ["model_a", "model_b", "router"])
def test_the_document_is_valid_openapi(their_python: Path, house: House, name: str) -> None:
    assert run_in(their_python, VALID, given=getattr(house, name).gets("/openapi.json").json) == []


@pytest.fixture(scope="module")
def services(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Both services on a board of their own, whose versions may be managed."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(board, folder / "board")
    with running(folder, folder / "board", "model_a", "model_b", RUNOFF_OPERATOR_KEY=KEY) as house:
        yield house


@pytest.mark.parametrize("name", ["model_a", "model_b"])
def test_schemathesis_finds_no_fault_and_no_answer_that_is_not_in_the_document(
    their_python: Path, services: House, tmp_path: Path, name: str
) -> None:
    url = services.services.urls[name]
    options = [
        *(f"--checks={','.join(CHECKS)}", f"--header=Authorization: Bearer {KEY}"),
        *("--phases=examples,coverage,fuzzing", "--max-examples=10", "--seed=2009", "--no-color"),
    ]
    said = subprocess.run(
        [their_python.with_name("schemathesis"), "run", f"{url}/openapi.json", *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    ).stdout
    documented = getattr(services, name).gets("/openapi.json").json["paths"]
    operations = sum(len(path) for path in documented.values())
    assert "FAILURES" not in said, said
    assert re.search(rf"Tested: +{operations}$", said, re.MULTILINE), said


def test_a_client_that_openapi_python_client_generates_gets_typed_answers(
    their_python: Path, house: House, store: Store, clients: Clients, tmp_path: Path
) -> None:
    (tmp_path / "openapi.json").write_bytes(house.model_a.gets("/openapi.json").body)
    subprocess.run(
        [
            *(their_python.with_name("openapi-python-client"), "generate"),
            *("--path", tmp_path / "openapi.json", "--output-path", tmp_path / "client", "--meta", "none"),
        ],
        check=True,
        capture_output=True,
    )
    told = run_in(their_python, GENERATED, tmp_path, house.model_a.url, given=clients[:5])
    wanted = offline(store, clients[:5])
    version = store.version("model-a")
    assert (told["ready"], told["version"]) == ("ready", version.id)
    assert told["one"] == {
        "prediction": wanted[0],
        "model": "model-a",
        "version": version.id,
        "class": int(wanted[0] >= version.record["threshold"]),
    }
    assert told["many"] == told["listed"] == wanted
    assert told["broken"] == [422, "/AGE", "minimum"]
