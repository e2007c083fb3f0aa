"""Who is measured: our prediction service and its peers, each as its own documentation would have it run.

A contender is started by a command, and asked in the forms that are natural to it. Peers have environments
of their own (`peers/*.txt`), know the model by its joblib file, and are set up as fast as we could make them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runoff.store import ModelVersion, Store

# In the Open Inference Protocol: where in a body the JSON ends and binary tensors begin.
JSON_LENGTH = "Inference-Header-Content-Length"
PEERS = Path(__file__).with_name("peers")
WORKERS = 2

Records = Sequence[Mapping[str, float]]


Headers = Mapping[str, str]


@dataclass(frozen=True)
class Form:
    """One way of asking: where, with which body and headers for some records, and how the answer is read."""

    name: str
    path: str
    write: Callable[[Records], tuple[bytes, Headers]]
    read: Callable[[bytes, Headers], Any]

    @classmethod
    def json(cls, name: str, path: str, body: Callable[[Records], Any], read: Callable[[Any], Any]) -> Form:
        """In JSON: of what the body is made, and where the answer has its figures."""
        return cls(
            name,
            path,
            lambda records: (json.dumps(body(records)).encode(), {"Content-Type": "application/json"}),
            lambda answer, _headers: read(json.loads(answer)),
        )


@dataclass(frozen=True)
class Subject:
    """What everybody serves: one version of a model, on a board in a folder."""

    store: Store
    version: ModelVersion

    @property
    def file(self) -> Path:
        """The joblib file, which the peers read."""
        return Path(self.store.place) / self.version.name / self.version.id / f"{self.version.name}.joblib"


@dataclass(frozen=True)
class Place:
    """Where a contender runs: its environment's programs, its port, a folder for its settings."""

    programs: Path
    port: int
    folder: Path


@dataclass(frozen=True)
class Contender:
    """A service that can be started and asked.

    `about` says what is worth knowing of it, and `packages` which versions to tell. `lock` is the environment
    of a peer. `classes` says that it answers the class instead of a probability.
    """

    name: str
    about: str
    command: Callable[[Place, Subject], list[str | Path]]
    row: Form
    batches: tuple[Form, ...]
    packages: tuple[str, ...]
    lock: Path | None = None
    classes: bool = False
    workers: int = WORKERS


def _runoff(place: Place, _subject: Subject) -> list[str | Path]:
    ours = (sys.executable, "-m", "runoff.server", "model_a.app:app")
    return [*ours, "--port", str(place.port), "--workers", str(WORKERS)]


def _gunicorn(place: Place, _subject: Subject) -> list[str | Path]:
    return [
        *(place.programs / "gunicorn", "naive_app:app"),
        *(f"--workers={WORKERS}", f"--bind=127.0.0.1:{place.port}"),
    ]


def _uvicorn(app: str) -> Callable[[Place, Subject], list[str | Path]]:
    return lambda place, _subject: [
        *(place.programs / "uvicorn", app),
        *(f"--workers={WORKERS}", f"--port={place.port}", "--no-access-log", "--log-level=warning"),
    ]


def _bentoml(place: Place, _subject: Subject) -> list[str | Path]:
    return [place.programs / "bentoml", "serve", "bentoml_app:Model", f"--port={place.port}"]


def _mlserver(workers: int) -> Callable[[Place, Subject], list[str | Path]]:
    def command(place: Place, subject: Subject) -> list[str | Path]:
        settings = {
            "host": "127.0.0.1",
            "http_port": place.port,
            "grpc_port": 0,
            "metrics_endpoint": None,
            "parallel_workers": workers,
            "debug": False,
        }
        model = {
            "name": "model-a",
            "implementation": "mlserver_sklearn.SKLearnModel",
            "parameters": {"uri": str(subject.file)},
        }
        (place.folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        (place.folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
        return [place.programs / "mlserver", "start", place.folder]

    return command


def _rows(records: Records) -> list[list[float]]:
    return [list(record.values()) for record in records]


def _split(records: Records) -> dict[str, Any]:
    return {"dataframe_split": {"columns": list(records[0]), "data": _rows(records)}}


def _tensor(records: Records) -> dict[str, Any]:
    """One tensor of all columns, in the Open Inference Protocol."""
    flat = [value for row in _rows(records) for value in row]
    shape = [len(records), len(records[0])]
    return {"inputs": [{"name": "rows", "shape": shape, "datatype": "FP64", "data": flat}]}


def _of_tensor(answer: Any) -> Any:
    """The probabilities of the greater class, from a tensor of them alone or of those of both classes."""
    output = answer["outputs"][0]
    width = output["shape"][1] if len(output["shape"]) > 1 else 1
    return output["data"][width - 1 :: width]


def _binary(records: Records) -> tuple[bytes, Headers]:
    """The same tensor as tritonclient sends it: its values as they are in memory, after the JSON."""
    data = np.array(_rows(records), "<f8").tobytes()
    body = _tensor(records) | {"parameters": {"binary_data_output": True}}
    del body["inputs"][0]["data"]
    body["inputs"][0]["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps(body).encode()
    return head + data, {JSON_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}


def _of_binary(answer: bytes, headers: Headers) -> Any:
    return np.frombuffer(answer[int(headers[JSON_LENGTH]) :], "<f8")


def _predictions(answer: Any) -> Any:
    return answer["predictions"]


RECORD = Form.json("record", "/predict", lambda records: records[0], lambda answer: [answer["prediction"]])
NAIVE = Form.json("records", "/predict", list, _predictions)
VETIVER = Form.json("records", "/predict", list, lambda answer: answer["predict"])
BENTOML = Form.json("rows", "/predict", lambda records: {"rows": _rows(records)}, lambda answer: answer)
MLSERVER = Form.json(
    "V2 tensor",
    "/v2/models/model-a/infer",
    lambda records: _tensor(records) | {"outputs": [{"name": "predict_proba"}]},
    _of_tensor,
)

OURS = Contender(
    "Runoff",
    "request ids, validation and metrics on",
    _runoff,
    RECORD,
    (
        Form.json("records", "/predict", lambda records: {"records": list(records)}, _predictions),
        Form.json("dataframe_split", "/invocations", _split, _predictions),
        Form.json("V2 tensor", "/v2/models/model-a/infer", _tensor, _of_tensor),
        Form("V2 binary tensor", "/v2/models/model-a/infer", _binary, _of_binary),
    ),
    ("granian", "flask", "onnxruntime"),
)

CONTENDERS = (
    OURS,
    Contender(
        "FastAPI by hand",
        "uvicorn, pydantic, arrays",
        _uvicorn("fastapi_app:app"),
        RECORD,
        (
            Form.json("records", "/records", list, _predictions),
            Form.json("rows", "/rows", _rows, _predictions),
        ),
        ("fastapi", "uvicorn", "pydantic"),
        PEERS / "fastapi.txt",
    ),
    Contender(
        "2020 style",
        "Flask under gunicorn's sync workers, a data frame for each request",
        _gunicorn,
        NAIVE,
        (NAIVE,),
        ("flask", "gunicorn", "pandas"),
        PEERS / "naive.txt",
    ),
    Contender(
        "vetiver",
        "answers classes, not probabilities",
        _uvicorn("vetiver_app:app"),
        VETIVER,
        (VETIVER,),
        ("vetiver", "fastapi", "uvicorn"),
        PEERS / "vetiver.txt",
        classes=True,
    ),
    Contender(
        "MLServer",
        "its scikit-learn runtime",
        _mlserver(WORKERS),
        MLSERVER,
        (MLSERVER,),
        ("mlserver", "fastapi", "uvicorn"),
        PEERS / "mlserver.txt",
    ),
    Contender(
        "MLServer, one process",
        "the same without its pool of workers, which leaves it one core",
        _mlserver(0),
        MLSERVER,
        (MLSERVER,),
        ("mlserver", "fastapi", "uvicorn"),
        PEERS / "mlserver.txt",
        workers=1,
    ),
    Contender(
        "BentoML",
        "arrays",
        _bentoml,
        BENTOML,
        (BENTOML,),
        ("bentoml", "uvicorn"),
        PEERS / "bentoml.txt",
    ),
)
