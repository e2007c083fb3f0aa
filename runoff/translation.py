"""Translate a fitted scikit-learn estimator into an ONNX graph, when its version is stored.

scikit-learn answers one row in milliseconds, nearly all of it spent outside of the model. onnxruntime answers
the same row in microseconds, and a service that has it need not import scikit-learn at all. Trees are read
by treelite and computed in double precision; whatever else is translated by skl2onnx, in double precision if
all of its operators are there, else in single. A translation is never trusted: it is stored only if it agrees
with scikit-learn on some thousand rows, and a service takes it only if it reproduces the golden rows there.

The graph takes one tensor `X`, double, of shape [n, features], and gives `probabilities` of shape [n, 1] or
[n, 2], the last column being the probability of the greater class.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from runoff.evaluators import TOLERANCE, Onnx, difference
from runoff.prototype import Prototype
from runoff.reference import Predict, probes

OPSET = 21
ML_OPSET = 5
IR_VERSION = 10

# The operators of ONNX's TreeEnsemble, https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html
SPLITS = {"<=": 0, "<": 1, ">=": 2, ">": 3}
SUM = 1
LINKS = {"sigmoid": "Sigmoid", "identity": "Identity", "identity_multiclass": "Identity"}


MAX_REASON = 120


class NotTranslatable(Exception):
    """No library at hand translates this estimator; the message says why."""


def to_onnx(estimator: Any, prototype: Prototype, X: pd.DataFrame, predict: Predict) -> bytes:
    """Translate a fitted classifier of two classes whose columns are all numbers or truth values.

    Args:
        estimator: the classifier.
        prototype: the columns that it takes.
        X: rows that it was trained on, shape (n, features).
        predict: gives its probabilities of rows, shape (n,).

    Returns:
        The first translation that agrees with it.

    Raises:
        NotTranslatable: there is none.
        ValueError: the classifier fails on a row that its prototype allows.
    """
    if not prototype.is_numeric:
        raise NotTranslatable("it has columns of strings, or of truth values that may be missing")
    rows, said = probes(X, prototype, predict)
    ways: list[tuple[str, Callable[[], bytes]]] = [("treelite", partial(_trees, estimator, prototype))]
    ways += [
        ("skl2onnx", partial(_by_skl2onnx, estimator, prototype, double=double, by_column=by_column))
        for double in (True, False)
        for by_column in (False, True)
    ]
    reasons = []
    for library, translate in ways:
        try:
            graph = translate()
            off = difference(Onnx(graph), rows, said)
        # What the libraries raise, and whether they do so on purpose, differs by estimator.
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
        else:
            if off <= TOLERANCE:
                return graph
            reason = f"off by {off:.1g}"
        reasons.append(f"{library}: {reason[:MAX_REASON]}")
    raise NotTranslatable("; ".join(dict.fromkeys(reasons)))


def _trees(estimator: Any, prototype: Prototype) -> bytes:
    """Sum of trees, or their mean, plus a base score, through a link."""
    import treelite  # noqa: PLC0415 (a service never needs it)
    from onnx import TensorProto, helper  # noqa: PLC0415
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415

    text = treelite.sklearn.import_model(estimator).dump_as_json(pretty_print=False)
    # A split that only tells what is missing has an infinite threshold, for which treelite writes nothing.
    ensemble = json.loads(text.replace('"threshold":,', '"threshold":Infinity,'))
    if ensemble["postprocessor"] not in LINKS or ensemble["num_target"] != 1:
        raise NotTranslatable(f"its scores go through {ensemble['postprocessor']}")

    def tensor(name: str, values: list[float], kind: int = TensorProto.DOUBLE) -> Any:
        return helper.make_tensor(name, kind, [len(values)], values)

    trees = _TreeArrays()
    for tree in ensemble["trees"]:
        trees.add(tree["nodes"])
    sum_of_trees = helper.make_node(
        "TreeEnsemble",
        ["rounded"],
        ["sum"],
        domain="ai.onnx.ml",
        aggregate_function=SUM,
        n_targets=1,
        tree_roots=trees.roots,
        nodes_featureids=trees.features,
        nodes_splits=tensor("splits", trees.thresholds),
        nodes_modes=tensor("modes", trees.modes, TensorProto.UINT8),
        nodes_truenodeids=trees.true_at,
        nodes_trueleafs=trees.true_is_leaf,
        nodes_falsenodeids=trees.false_at,
        nodes_falseleafs=trees.false_is_leaf,
        nodes_missing_value_tracks_true=trees.missing_is_true,
        leaf_targetids=[0] * len(trees.leaves),
        leaf_weights=tensor("leaves", trees.leaves),
    )
    # All but the histograms round what they are given to single precision, before they compare.
    whole = isinstance(estimator, HistGradientBoostingClassifier)
    precision = TensorProto.DOUBLE if whole else TensorProto.FLOAT
    constants = [
        tensor("stumps", [trees.constant]),
        tensor("count", [len(ensemble["trees"]) if ensemble["average_tree_output"] else 1]),
        tensor("base", [ensemble["base_scores"][-1]]),
    ]
    nodes = [
        helper.make_node("Cast", ["X"], ["single"], to=precision),
        helper.make_node("Cast", ["single"], ["rounded"], to=TensorProto.DOUBLE),
        sum_of_trees,
        helper.make_node("Add", ["sum", "stumps"], ["total"]),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("Add", ["mean", "base"], ["score"]),
        helper.make_node(LINKS[ensemble["postprocessor"]], ["score"], ["probabilities"]),
    ]
    inputs = [helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, len(prototype.features)])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.DOUBLE, [None, 1])]
    graph = helper.make_graph(nodes, "trees", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    return model


class _TreeArrays:
    """The trees in the arrays of ONNX's TreeEnsemble: nodes that split in some, leaves in another."""

    def __init__(self) -> None:
        self.roots: list[int] = []
        self.features: list[int] = []
        self.thresholds: list[float] = []
        self.modes: list[float] = []
        self.true_at: list[int] = []
        self.true_is_leaf: list[int] = []
        self.false_at: list[int] = []
        self.false_is_leaf: list[int] = []
        self.missing_is_true: list[int] = []
        self.leaves: list[float] = []
        self.constant = 0.0

    def add(self, nodes: list[dict[str, Any]]) -> None:
        """Add a tree, as treelite writes it in JSON."""
        splits = [node for node in nodes if "split_feature_id" in node]
        if any(node["node_type"] != "numerical_test_node" for node in splits):
            raise NotTranslatable("a tree splits by category")
        if not splits:
            self.constant += _of_greater_class(nodes[0]["leaf_value"])
            return
        by_id = {node["node_id"]: node for node in nodes}
        position = {node["node_id"]: len(self.features) + n for n, node in enumerate(splits)}
        self.roots.append(len(self.features))
        for node in splits:
            self.features.append(node["split_feature_id"])
            self.thresholds.append(node["threshold"])
            self.modes.append(SPLITS[node["comparison_op"]])
            self.missing_is_true.append(int(node["default_left"]))
            for child, at, is_leaf in (
                (node["left_child"], self.true_at, self.true_is_leaf),
                (node["right_child"], self.false_at, self.false_is_leaf),
            ):
                is_leaf.append(int(child not in position))
                at.append(position[child] if child in position else len(self.leaves))
                if child not in position:
                    self.leaves.append(_of_greater_class(by_id[child]["leaf_value"]))


def _of_greater_class(leaf: float | list[float]) -> float:
    """The value of a leaf; of one that has a value for each class, that of the greater class."""
    return leaf[-1] if isinstance(leaf, list) else leaf


def _by_skl2onnx(estimator: Any, prototype: Prototype, *, double: bool, by_column: bool) -> bytes:
    """Let skl2onnx translate, and make of one matrix of double precision what its graph takes.

    Args:
        estimator: the classifier.
        prototype: the columns that it takes.
        double: whether to compute in double precision, for which not every operator is there.
        by_column: whether the graph takes columns by their names, as one that tells them apart has to.
    """
    import skl2onnx  # noqa: PLC0415
    from onnx import TensorProto, helper  # noqa: PLC0415
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType  # noqa: PLC0415

    names = list(prototype.names)
    kind = DoubleTensorType if double else FloatTensorType
    columns = [(name, kind([None, 1])) for name in names]
    whole = [("X_whole", kind([None, len(names)]))]
    logging.getLogger("skl2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        options = {id(estimator): {"zipmap": False}}
        initial = columns if by_column else whole
        model = skl2onnx.to_onnx(estimator, initial_types=initial, options=options)
    graph = model.graph
    taken = {each.name for each in graph.input}
    precision = TensorProto.DOUBLE if double else TensorProto.FLOAT
    before = [helper.make_node("Cast", ["X"], ["X_whole"], to=precision)]
    if by_column:
        parts = [name if name in taken else f"unused_{n}" for n, name in enumerate(names)]
        before.append(helper.make_node("Split", ["X_whole", "widths"], parts, axis=1))
        widths = helper.make_tensor("widths", TensorProto.INT64, [len(names)], [1] * len(names))
        graph.initializer.append(widths)
    translated = list(graph.node)
    del graph.input[:], graph.node[:]
    graph.input.append(helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, len(names)]))
    graph.node.extend([*before, *translated])
    content: bytes = model.SerializeToString()
    return content
