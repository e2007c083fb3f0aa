"""What computes a probability from a row: onnxruntime where it proves exact, else scikit-learn.

Both take rows as a matrix in the order of the prototype's columns: float64 where all columns are numbers or
truth values (a missing value is NaN), of objects where some are strings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runoff.prototype import Prototype

if TYPE_CHECKING:
    import pandas as pd

# How far the probabilities of a translation may lie from those of scikit-learn.
TOLERANCE = 1e-6

Matrix = NDArray[Any]


class Evaluator(Protocol):
    """What serves a version."""

    name: str

    def probabilities(self, rows: Matrix) -> NDArray[np.float64]:
        """The probability of the outcome, which is the greater class, for each row; shape (n,)."""


class Onnx:
    """An ONNX graph under onnxruntime, on one thread: waking others costs more than a row does."""

    name = "onnxruntime"

    def __init__(self, graph: bytes) -> None:
        """Load a graph as `runoff.translation` makes it.

        Raises:
            ImportError: onnxruntime is not installed.
            Exception: it is no such graph; onnxruntime has no class of its own for that.
        """
        import onnxruntime  # noqa: PLC0415 (a service of a plain scikit-learn model does without)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._run = session.run
        self._outputs = ["probabilities"]

    def probabilities(self, rows: Matrix) -> NDArray[np.float64]:
        answer: NDArray[np.float64] = self._run(self._outputs, {"X": rows})[0][:, -1]
        return answer if answer.dtype == np.float64 else answer.astype(np.float64)


class ScikitLearn:
    """The estimator itself, which wants a data frame of the types that it was fitted on."""

    name = "scikit-learn"

    def __init__(self, estimator: Any, prototype: Prototype) -> None:
        self._estimator = estimator
        self._prototype = prototype

    def probabilities(self, rows: Matrix) -> NDArray[np.float64]:
        frame = to_frame(rows, self._prototype)
        answer: NDArray[np.float64] = self._estimator.predict_proba(frame)[:, 1]
        return answer


def to_frame(rows: Matrix, prototype: Prototype) -> pd.DataFrame:
    """A data frame of the types that the model was trained on, from rows in the order of its columns."""
    import pandas as pd  # noqa: PLC0415 (it takes longer to import than most services to start)

    return pd.DataFrame(rows, columns=list(prototype.names)).astype(
        {feature.name: dtype for feature in prototype.features if (dtype := feature.dtype)}
    )


def to_matrix(records: Sequence[Mapping[str, Any]], prototype: Prototype) -> Matrix:
    """Rows in the order of the columns, from records that are known to follow the prototype."""
    rows = [tuple(record[name] for name in prototype.names) for record in records]
    if prototype.is_numeric:
        return np.array(rows, np.float64)
    matrix = np.empty((len(rows), len(prototype.names)), object)
    matrix[:] = rows
    return matrix


def difference(evaluator: Evaluator, rows: Matrix, said: NDArray[np.float64]) -> float:
    """The greatest difference between what an evaluator says of rows and what was said of them."""
    # A NaN is no agreement.
    return float(np.nan_to_num(np.abs(evaluator.probabilities(rows) - said), nan=np.inf).max())


@dataclass(frozen=True)
class GoldenRows:
    """Rows of the training data with the probabilities that scikit-learn gave when the version was stored."""

    rows: list[dict[str, Any]]
    probabilities: list[float]

    def difference(self, evaluator: Evaluator, prototype: Prototype) -> float:
        """The greatest difference between what an evaluator says of the golden rows and what was said."""
        return difference(evaluator, to_matrix(self.rows, prototype), np.array(self.probabilities))
