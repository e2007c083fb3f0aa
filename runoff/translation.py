"""Translate a fitted scikit-learn estimator into an ONNX graph, when its version is stored.

scikit-learn answers one row in milliseconds, nearly all of it spent outside of the model. onnxruntime answers
the same row in microseconds, and a service that has it need not import scikit-learn at all. Trees are read
by treelite and computed in double precision; whatever else is translated by skl2onnx, in single precision.
A translation is never trusted: a service takes it only if it reproduces the version's golden rows.

The graph takes one tensor `X`, double, of shape [n, features], and gives `probabilities` of shape [n, 1] or
[n, 2], the last column being the probability of the greater class.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from typing import Any

from runoff.prototype import Prototype

OPSET = 21
ML_OPSET = 5
IR_VERSION = 10

# The operators of ONNX's TreeEnsemble, https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html
SPLITS = {"<=": 0, "<": 1, ">=": 2, ">": 3}
SUM = 1
LINKS = {"sigmoid": "Sigmoid", "identity": "Identity", "identity_multiclass": "Identity"}


class NotTranslatable(Exception):
    """No library at hand translates this estimator; the message says why."""


def to_onnx(estimator: Any, prototype: Prototype) -> bytes:
    """Translate a fitted classifier of two classes whose columns are all numbers or truth values.

    Raises:
        NotTranslatable: it cannot be done.
    """
    strings = [feature.name for feature in prototype.features if feature.type == "string"]
    if strings:
        raise NotTranslatable(f"{strings[0]} is a column of strings")
    width = len(prototype.features)
    try:
        return _trees(estimator, width)
    except NotTranslatable as no_trees:
        try:
            return _by_skl2onnx(estimator, prototype)
        # What skl2onnx raises, and whether it does so on purpose, differs by converter.
        except Exception as error:
            reason = str(error).partition("\n")[0][:200]
            raise NotTranslatable(f"{no_trees}; skl2onnx: {reason}") from error


def _trees(estimator: Any, width: int) -> bytes:
    """Sum of trees, plus a base score, through a link."""
    import treelite  # noqa: PLC0415 (a service never needs it)
    from onnx import TensorProto, helper  # noqa: PLC0415

    try:
        ensemble = json.loads(treelite.sklearn.import_model(estimator).dump_as_json(pretty_print=False))
    except Exception as error:
        reason = str(error).partition("\n")[0][:100]
        raise NotTranslatable(f"treelite: {reason or type(error).__name__}") from error
    if ensemble["postprocessor"] not in LINKS or ensemble["num_target"] != 1:
        raise NotTranslatable(f"treelite: its scores go through {ensemble['postprocessor']}")

    def tensor(name: str, values: list[float], kind: int = TensorProto.DOUBLE) -> Any:
        return helper.make_tensor(name, kind, [len(values)], values)

    trees = _TreeArrays()
    for tree in ensemble["trees"]:
        trees.add(tree["nodes"])
    if ensemble["average_tree_output"]:
        trees.leaves = [leaf / len(ensemble["trees"]) for leaf in trees.leaves]
    sum_of_trees = helper.make_node(
        "TreeEnsemble",
        ["X"],
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
    base = tensor("base", [ensemble["base_scores"][-1]])
    nodes = [
        sum_of_trees,
        helper.make_node("Add", ["sum", "base"], ["score"]),
        helper.make_node(LINKS[ensemble["postprocessor"]], ["score"], ["probabilities"]),
    ]
    inputs = [helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, width])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.DOUBLE, [None, 1])]
    graph = helper.make_graph(nodes, "trees", inputs, outputs, [base])
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

    def add(self, nodes: list[dict[str, Any]]) -> None:
        """Add a tree, as treelite writes it in JSON."""
        splits = [node for node in nodes if "split_feature_id" in node]
        if not splits or any(node["node_type"] != "numerical_test_node" for node in splits):
            raise NotTranslatable("treelite: a tree without splits, or one that splits by category")
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
                    leaf = by_id[child]["leaf_value"]
                    # Of a leaf with a value for each class, the greater class's counts.
                    self.leaves.append(leaf[-1] if isinstance(leaf, list) else leaf)


def _by_skl2onnx(estimator: Any, prototype: Prototype) -> bytes:
    """Let skl2onnx translate, and put the columns of one matrix before it."""
    import skl2onnx  # noqa: PLC0415
    from onnx import TensorProto, helper  # noqa: PLC0415
    from skl2onnx.common.data_types import FloatTensorType  # noqa: PLC0415

    names = list(prototype.names)
    whole = [("X_single", FloatTensorType([None, len(names)]))]
    columns = [(name, FloatTensorType([None, 1])) for name in names]
    options = {id(estimator): {"zipmap": False}}
    logging.getLogger("skl2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            model = skl2onnx.to_onnx(estimator, initial_types=columns, options=options)
        except Exception:
            model = skl2onnx.to_onnx(estimator, initial_types=whole, options=options)
    graph = model.graph
    taken = {each.name for each in graph.input}
    before = [helper.make_node("Cast", ["X"], ["X_single"], to=TensorProto.FLOAT)]
    if taken != {"X_single"}:
        parts = [name if name in taken else f"unused_{n}" for n, name in enumerate(names)]
        before.append(helper.make_node("Split", ["X_single"], parts, axis=1, num_outputs=len(names)))
    translated = list(graph.node)
    del graph.input[:], graph.node[:]
    graph.input.append(helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, len(names)]))
    graph.node.extend([*before, *translated])
    content: bytes = model.SerializeToString()
    return content
