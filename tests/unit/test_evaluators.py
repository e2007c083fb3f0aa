"""What evaluates a model: the translation where it proves exact, scikit-learn where not, with the reason."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from runoff.evaluators import TOLERANCE, to_matrix
from runoff.prototype import Prototype
from runoff.store import CorruptVersion, ModelVersion, Store, UnfaithfulVersion

ROOT = Path(__file__).resolve().parents[2]
CODES = {"kind": (1, 2, 3, 4)}


def some_rows(n: int, seed: int, *, missing: bool = False) -> pd.DataFrame:
    """Clients of a kind: a real number of wide range, a whole number, a code."""
    rng = np.random.default_rng(seed)
    real = rng.lognormal(8, 2, n)
    if missing:
        real[rng.random(n) < 0.1] = np.nan
    # A code that is allowed, and that training never sees: 4.
    return pd.DataFrame({"real": real, "whole": rng.integers(-50, 5000, n), "kind": rng.integers(1, 4, n)})


class HandWritten(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Somebody's own estimator, which no translator knows."""

    def fit(self, X: pd.DataFrame, y: NDArray[np.int64]) -> HandWritten:
        self.classes_, self.mean_ = np.unique(y), float(X["whole"].mean())
        return self

    def predict_proba(self, X: pd.DataFrame) -> NDArray[np.float64]:
        p = 1 / (1 + np.exp(-(X["whole"].to_numpy() - self.mean_) / 1000))
        return np.column_stack([1 - p, p])


def encoded(*, unknown: str) -> Any:
    encoder = OneHotEncoder(handle_unknown=unknown)
    transformer = make_column_transformer((encoder, ["kind"]), (StandardScaler(), ["real", "whole"]))
    return make_pipeline(transformer, LogisticRegression())


ESTIMATORS = [
    ("logistic regression", make_pipeline(StandardScaler(), LogisticRegression()), "onnxruntime"),
    ("histogram boosting", HistGradientBoostingClassifier(max_iter=20), "onnxruntime"),
    ("histogram boosting of what is missing", HistGradientBoostingClassifier(max_iter=20), "onnxruntime"),
    ("a random forest", RandomForestClassifier(20, max_depth=6), "onnxruntime"),
    ("extremely random trees", ExtraTreesClassifier(20, max_depth=6), "onnxruntime"),
    ("gradient boosting", GradientBoostingClassifier(n_estimators=20), "onnxruntime"),
    ("a tree", DecisionTreeClassifier(max_depth=6), "onnxruntime"),
    ("an estimator of one's own", HandWritten(), "scikit-learn"),
    (
        "boosting of categories",
        HistGradientBoostingClassifier(max_iter=20, categorical_features=["kind"]),
        "scikit-learn",
    ),
    ("codes of which some are unknown", encoded(unknown="ignore"), "onnxruntime"),
    (
        "bins",
        make_pipeline(
            KBinsDiscretizer(5, quantile_method="averaged_inverted_cdf"), LogisticRegression(max_iter=500)
        ),
        "scikit-learn",
    ),
    ("a calibrated model", CalibratedClassifierCV(LogisticRegression(max_iter=500), cv=3), "onnxruntime"),
    ("naive Bayes", GaussianNB(), "onnxruntime"),
]


@pytest.mark.filterwarnings("ignore:Found unknown categories", "ignore:Bins whose width are too small")
@pytest.mark.parametrize(
    ("name", "estimator", "evaluator"), ESTIMATORS, ids=[name for name, *_ in ESTIMATORS]
)
def test_whatever_evaluates_a_model_says_what_scikit_learn_says(
    tmp_path: Path, name: str, estimator: Any, evaluator: str
) -> None:
    missing = "missing" in name
    X, fresh = (some_rows(400, seed, missing=missing) for seed in (1, 2))
    fresh.loc[:9, "kind"] = 4
    y = (X["real"].fillna(0).rank() + X["whole"].rank() + 50 * X["kind"] > 500).to_numpy(int)
    estimator.fit(X, y)
    store = Store.open(tmp_path)
    store.write("m", estimator, prototype=Prototype.from_frame(X, codes=CODES), record={}, examples=X)
    loaded = store.load("m")
    assert loaded.evaluator.name == evaluator
    # Whatever is not translated says why, since somebody may have counted on it.
    assert bool(loaded.reason) is (loaded.evaluator.name == "scikit-learn")
    right = estimator.predict_proba(fresh)[:, 1]
    rows = to_matrix(json.loads(fresh.to_json(orient="records")), loaded.version.prototype)
    assert loaded.evaluator.probabilities(rows) == pytest.approx(right, abs=TOLERANCE)
    one_by_one = [loaded.evaluator.probabilities(rows[n : n + 1])[0] for n in range(50)]
    assert one_by_one == pytest.approx(right[:50], abs=TOLERANCE)


def written(place: Path, seed: int = 1) -> tuple[Store, ModelVersion]:
    X = some_rows(400, 1)
    y = np.random.default_rng(seed).integers(0, 2, len(X))
    store = Store.open(place)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    return store, store.write("m", model, prototype=Prototype.from_frame(X), record={}, examples=X)


def replace(store: Store, version: ModelVersion, file: str, content: bytes, *, digest: bool = True) -> None:
    """Put other bytes into the place of a file, with the digest that they have if asked for."""
    folder = Path(store.place) / version.name / version.id
    (folder / file).write_bytes(content)
    if digest:
        was = version.files.get(file) or str(version.digest)
        text = (folder / "data.txt").read_text()
        (folder / "data.txt").write_text(text.replace(was, hashlib.sha256(content).hexdigest()))


@pytest.mark.parametrize(
    ("graph", "why"),
    [("of another model", "onnxruntime is off by"), ("no graph at all", "onnxruntime cannot evaluate it")],
)
def test_a_translation_that_is_not_exact_does_not_serve(tmp_path: Path, graph: str, why: str) -> None:
    store, version = written(tmp_path / "one")
    other, another = written(tmp_path / "two", seed=2)
    wrong = other.open_attached(another, "model.onnx") if graph == "of another model" else b"hello"
    replace(store, version, "model.onnx", wrong)
    loaded = store.load("m")
    assert loaded.evaluator.name == "scikit-learn"
    assert why in str(loaded.reason)


def test_a_translation_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    store, version = written(tmp_path)
    replace(store, version, "model.onnx", b"hello", digest=False)
    with pytest.raises(CorruptVersion, match=r"model\.onnx"):
        store.load("m")


def test_a_model_that_says_something_else_than_when_it_was_stored_is_not_served(tmp_path: Path) -> None:
    store, version = written(tmp_path)
    golden = json.loads(store.open_attached(version, "golden.json"))
    golden["probabilities"][7] += 1e-5
    replace(store, version, "golden.json", json.dumps(golden).encode())
    with pytest.raises(UnfaithfulVersion, match="off by"):
        store.load("m")


FROM_ANOTHER_RELEASE = """
import sys
import sklearn.base, numpy as np, pandas as pd
from sklearn.linear_model import LogisticRegression
from runoff.prototype import Prototype
from runoff.store import Store
# What scikit-learn writes into a pickle, and compares when it is read.
sklearn.base.__version__ = "1.2.0"
board, examples = sys.argv[1:]
X = pd.DataFrame({"age": np.arange(20, 60), "income": np.arange(40) * 0.5})
model = LogisticRegression().fit(X, X["age"] % 2)
examples = {"examples": X} if examples == "with examples" else {}
version = Store.open(board).write("m", model, prototype=Prototype.from_frame(X), record={}, **examples)
"""


@pytest.mark.parametrize("examples", ["with examples", pytest.param("without", marks=pytest.mark.slow)])
def test_a_model_of_another_scikit_learn_is_served_only_if_it_can_prove_that_it_says_the_same(
    tmp_path: Path, examples: str, caplog: pytest.LogCaptureFixture
) -> None:
    subprocess.run([sys.executable, "-c", FROM_ANOTHER_RELEASE, tmp_path, examples], cwd=ROOT, check=True)
    store = Store.open(tmp_path)
    if examples == "without":
        with pytest.raises(UnfaithfulVersion, match=r"trained by scikit-learn 1\.2\.0"):
            store.load("m")
        return
    # The translation needs no scikit-learn at all, of whatever release.
    assert store.load("m").evaluator.name == "onnxruntime"
    replace(store, store.version("m"), "model.onnx", b"hello")
    assert store.load("m").evaluator.name == "scikit-learn"
    assert "trained by scikit-learn 1.2.0" in caplog.text
