"""The store: what is written is what is loaded, or nothing is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from runoff.prototype import Prototype
from runoff.store import CorruptVersion, NoSuchVersion, Store, StoreError

X = pd.DataFrame({"z_last": [1, 2, 3, 4], "a_first": [0.1, 0.2, 0.4, 0.8], "m": [True, False, True, False]})
Y = [0, 1, 0, 1]
PROTOTYPE = Prototype.from_frame(X, codes={"z_last": (1, 2, 3, 4, 5)}, bounds={"a_first": (0, None)})
RECORD = {"algorithm": "LogisticRegression", "metrics": {"roc_auc": {"value": 0.75}}}


class Touch:
    """What a malicious pickle does: something, when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return Store.open(tmp_path)


def model_file(folder: Path) -> Path:
    return next(folder.glob("m/*/m.joblib"))


def written(store: Store) -> Any:
    return store.write("m", LogisticRegression().fit(X, Y), prototype=PROTOTYPE, record=RECORD)


def test_a_version_is_loaded_as_it_was_written(empty: Store) -> None:
    estimator = LogisticRegression().fit(X, Y)
    version = empty.write("m", estimator, prototype=PROTOTYPE, record=RECORD)
    loaded = empty.load("m", version.id)
    assert np.array_equal(loaded.probabilities(X), estimator.predict_proba(X)[:, 1])
    assert loaded.version == version
    assert loaded.digest == version.digest
    assert version.record == RECORD


def test_the_columns_keep_their_order(empty: Store) -> None:
    assert written(empty).prototype.names == ("z_last", "a_first", "m")
    assert empty.version("m").prototype == PROTOTYPE


def test_versions_are_listed_oldest_first_even_when_made_within_a_second(empty: Store) -> None:
    made = [written(empty).id for _ in range(4)]
    assert [version.id for version in empty.versions("m")] == made == sorted(made)
    assert empty.load("m").version.id == made[-1]


def test_an_unknown_model_or_version_is_named(empty: Store) -> None:
    assert empty.versions("m") == []
    with pytest.raises(NoSuchVersion, match="no version of 'm'"):
        empty.load("m")
    written(empty)
    with pytest.raises(NoSuchVersion, match="no version '20200101T000000Z-abcde' of 'm'"):
        empty.load("m", "20200101T000000Z-abcde")


@pytest.mark.parametrize("damage", ["truncated", "one bit", "replaced", "gone"])
def test_a_file_that_is_not_the_one_written_is_never_unpickled(
    empty: Store, tmp_path: Path, damage: str
) -> None:
    written(empty)
    path, mark = model_file(tmp_path), tmp_path / "touched"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-10])
    elif damage == "one bit":
        path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
    elif damage == "replaced":
        joblib.dump(Touch(mark), path)
    else:
        path.unlink()
    with pytest.raises(CorruptVersion):
        empty.load("m")
    assert not mark.exists()


def test_a_pin_of_another_tool_is_refused_when_damaged(empty: Store, tmp_path: Path) -> None:
    written(empty)
    data = next(tmp_path.glob("m/*/data.txt"))
    # As vetiver writes it: without anything of ours.
    text = data.read_text()
    ours = text[text.index("  user:\n    runoff:") : text.index("  vetiver_meta:")]
    data.write_text(text.replace(ours, "  user: {}\n"))
    assert empty.load("m").version.digest is None
    joblib.dump(Touch(tmp_path / "touched"), model_file(tmp_path))
    with pytest.raises(CorruptVersion):
        empty.load("m")
    assert not (tmp_path / "touched").exists()


def test_a_version_that_is_still_being_written_is_not_listed(empty: Store, tmp_path: Path) -> None:
    whole = written(empty)
    half = tmp_path / "m" / "20991231T235959Z-abcde"
    half.mkdir()
    (half / "m.joblib").write_bytes(b"half")
    assert empty.versions("m") == [whole]
    assert empty.load("m").version == whole


def test_a_form_of_a_later_release_is_refused(empty: Store, tmp_path: Path) -> None:
    written(empty)
    data = next(tmp_path.glob("m/*/data.txt"))
    data.write_text(data.read_text().replace("format: 1", "format: 2"))
    with pytest.raises(StoreError, match="format 2"):
        empty.load("m")


def test_a_model_that_gives_no_probabilities_is_refused(empty: Store) -> None:
    empty.write("m", LinearRegression().fit(X, Y), prototype=PROTOTYPE, record={})
    with pytest.raises(StoreError, match="no classifier of two classes"):
        empty.load("m")


def test_a_model_that_cannot_be_unpickled_here_is_named_with_its_needs(empty: Store, tmp_path: Path) -> None:
    written(empty)
    path = model_file(tmp_path)
    path.write_bytes(b"not a pickle at all")
    text = (data := next(tmp_path.glob("m/*/data.txt"))).read_text()
    digest = empty.version("m").digest
    data.write_text(text.replace(str(digest), hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(StoreError, match=r"cannot be unpickled here \(it needs scikit-learn"):
        empty.load("m")


def test_the_probability_is_that_of_the_greater_class_whatever_the_classes_are(empty: Store) -> None:
    named = LogisticRegression().fit(X, ["paid", "default", "paid", "default"])
    empty.write("m", named, prototype=PROTOTYPE, record={})
    assert np.array_equal(
        empty.load("m").probabilities(X), named.predict_proba(X)[:, list(named.classes_).index("paid")]
    )


def test_files_are_kept_with_the_version_and_count_as_no_version(empty: Store, tmp_path: Path) -> None:
    version = written(empty)
    (tmp_path / "report.html").write_text("<p>fine</p>")
    report = tmp_path / "report.html"
    empty.attach(version, {"notebook.html": report})
    report.unlink()
    assert empty.open_attached(version, "notebook.html") == b"<p>fine</p>"
    assert [each.id for each in empty.versions("m")] == [version.id]
    with pytest.raises(FileNotFoundError):
        empty.open_attached(version, "card.html")


def test_a_record_that_json_cannot_say_is_refused_before_anything_is_written(empty: Store) -> None:
    with pytest.raises((TypeError, ValueError)):
        empty.write("m", LogisticRegression().fit(X, Y), prototype=PROTOTYPE, record={"auc": float("nan")})
    assert empty.versions("m") == []


def test_a_prototype_describes_every_type_and_survives_json() -> None:
    frame = pd.DataFrame(
        {
            "whole": [3, 1, 2],
            "real": [0.5, None, 1.5],
            "flag": [True, False, True],
            "text": ["b", "a", "b"],
            "kind": pd.Categorical(["x", "y", "x"], categories=["x", "y", "z"]),
        }
    )
    prototype = Prototype.from_frame(frame)
    by_name = {feature.name: feature for feature in prototype.features}
    assert [by_name[str(name)].type for name in frame] == ["integer", "number", "boolean", "string", "string"]
    assert by_name["real"].nullable
    assert by_name["kind"].codes == ("x", "y", "z")
    assert by_name["kind"].seen.values == ("x", "y")
    assert (by_name["whole"].seen.minimum, by_name["whole"].seen.maximum) == (1, 3)
    assert Prototype.from_json(json.loads(json.dumps(prototype.to_json()))) == prototype


def test_a_prototype_of_dates_is_refused_by_the_name_of_the_column() -> None:
    with pytest.raises(ValueError, match="'when'"):
        Prototype.from_frame(pd.DataFrame({"when": pd.to_datetime(["2026-01-01"])}))
