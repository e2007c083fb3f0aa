"""The model store: versions of models as pins, in the form that vetiver writes and reads.

Life of a version: `write` → `versions` → `attach` → `load`. A version is a folder of the board,
`<model>/<time>-<hash>/`, with `<model>.joblib` and `data.txt` (YAML). What Runoff knows of it stands in
`data.txt` under `user.user.runoff`, with the SHA-256 of the joblib file and of each file beside it: nothing
is unpickled, or otherwise used, before its digest is found to be that one. Beside it lie, where the version
was written with examples,

- `model.onnx`, the model translated, which serves if it reproduces the golden rows;
- `golden.json`, rows with scikit-learn's probabilities at the time of writing;
- `reference.json`, histograms of the columns in training.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pins
from pins.boards import BaseBoard
from pins.config import pins_options
from pins.errors import PinsError
from pins.meta import Meta
from pins.versions import Version as PinVersion
from xxhash import xxh64
from yaml import YAMLError

from runoff.evaluators import TOLERANCE, Evaluator, GoldenRows, Matrix, Onnx, ScikitLearn
from runoff.prototype import Prototype, Scalar

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# pins announces each write on stderr; the rooms say themselves what they do.
pins_options.quiet = True

# The form of what stands under `user.user.runoff`. A reader refuses a form that it does not know.
FORMAT = 1

TWO_CLASSES = 2

# A pin of the board that is no model.
RELEASES = "releases"

ONNX, GOLDEN, REFERENCE = "model.onnx", "golden.json", "reference.json"

DEFAULT_BOARD = Path(__file__).resolve().parent.parent / "var" / "models"


class StoreError(Exception):
    """The store does not hold what was asked for, or what it holds must not be used."""


class NoSuchVersion(StoreError):
    """No model or no version of this name."""


class CorruptVersion(StoreError):
    """A file of the version is not the one that was written: it has not been used."""


class UnfaithfulVersion(StoreError):
    """The version does not say here what it said when it was stored, or cannot be shown to."""


@dataclass(frozen=True)
class ModelVersion:
    """What is known of one version without loading it.

    `digest` is the SHA-256 of the joblib file as recorded when it was written; a pin that another tool
    wrote has None. `files` holds those of the files beside it that serve the model. `record` is the training
    record: library, algorithm, parameters, metrics, … `untranslated` says why there is no `model.onnx`.
    `size` is that of the joblib file, in bytes.
    """

    name: str
    id: str
    created: datetime
    digest: str | None
    pin_hash: str
    prototype: Prototype
    record: Mapping[str, Any] = field(default_factory=dict)
    required_packages: tuple[str, ...] = ()
    python_version: tuple[int | str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    untranslated: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A version in memory, with the digest of the bytes that it was read from.

    `reason` says why it is scikit-learn that evaluates, where it is.
    """

    version: ModelVersion
    digest: str
    evaluator: Evaluator
    reason: str | None = None

    def probabilities(self, X: Matrix | pd.DataFrame) -> NDArray[np.float64]:
        """The probability of the outcome, which is the greater class, for each row.

        Args:
            X: shape (n, features), a matrix in the order of the prototype's columns, or a data frame.

        Returns:
            Shape (n,).
        """
        prototype = self.version.prototype
        if isinstance(X, np.ndarray):
            return self.evaluator.probabilities(X)
        rows = X[list(prototype.names)].to_numpy("float64" if prototype.is_numeric else object)
        return self.evaluator.probabilities(rows)


class Store:
    """Model versions on a pins board."""

    def __init__(self, place: str) -> None:
        """Take the place of a board, as `open` finds it."""
        self.place = place
        self._opened: tuple[int, BaseBoard] | None = None

    @property
    def _board(self) -> BaseBoard:
        """The board, opened anew in a process that was forked: its connections do not survive that."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _board_at(self.place))
        return self._opened[1]

    @classmethod
    def open(cls, board: str | os.PathLike[str] | None = None) -> Store:
        """Open the board at a path or an fsspec URL.

        Args:
            board: a folder, or a URL such as `s3://bucket/models` (with the matching fsspec package);
                by default what RUNOFF_BOARD says, else `var/models` in this checkout.
        """
        place = str(board or os.environ.get("RUNOFF_BOARD") or DEFAULT_BOARD)
        protocol, separator, path = place.partition("://")
        if separator and protocol != "file":
            return cls(place)
        folder = Path(path if separator else place).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return cls(str(folder))

    def write(
        self,
        name: str,
        estimator: Any,
        *,
        prototype: Prototype,
        record: Mapping[str, Any],
        examples: pd.DataFrame | None = None,
        required_packages: Iterable[str] = ("scikit-learn",),
    ) -> ModelVersion:
        """Store a trained model as a new version.

        Args:
            name: the model's name, which is the pin's.
            estimator: a fitted classifier of two classes, which must unpickle where it will be served.
            prototype: the columns that it takes.
            record: the training record, of JSON types only.
            examples: rows of the training data. Golden rows are chosen from them and histograms made of
                them, and the model is translated for fast serving; without them it is served as it is.
            required_packages: what must be installed to unpickle it, by their names on the package index.

        Raises:
            StoreError: the file that the board holds afterwards is not the one that was written.
            TypeError: the record holds what JSON cannot say.
            ValueError: the model fails on a row that its prototype allows, or no model can have this name.
        """
        if not _can_be_named(name):
            raise ValueError(f"a model cannot be named {name!r}")
        record = json.loads(json.dumps(record, allow_nan=False))
        files, untranslated = _files(estimator, prototype, examples)
        # Only now: nearest neighbours, for one, count in themselves what they were asked.
        digest = hashlib.sha256(_pickle(estimator)).hexdigest()
        known = self._version_ids(name)
        meta = self._board.pin_write(
            estimator,
            name,
            type="joblib",
            title=f"{name}: a pinned {type(estimator).__name__}",
            description=record.get("algorithm"),
            metadata={
                "user": {
                    "runoff": {
                        "format": FORMAT,
                        "sha256": digest,
                        "prototype": prototype.to_json(),
                        "record": record,
                        "files": {file: hashlib.sha256(files[file]).hexdigest() for file in files},
                        "untranslated": untranslated,
                    }
                },
                "vetiver_meta": {
                    "required_pkgs": list(required_packages),
                    "prototype": json.dumps(prototype.example),
                    "python_version": [*map(int, platform.python_version_tuple()[:2])],
                },
            },
            created=_after(known[-1] if known else None),
            # The same bytes trained again are still another version: its record differs.
            force_identical_write=True,
        )
        version = self.version(name, meta.version.version)
        for file, content in files.items():
            self._board.fs.pipe_file(self._path(version, file), content)
        self._read_model(version)
        return version

    def names(self) -> list[str]:
        """The names of all models."""
        return sorted(name for name in self._board.pin_list() if name != RELEASES)

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model that are whole, oldest first; none if there is no such model."""
        whole = []
        for version_id in self._version_ids(name):
            try:
                whole.append(self.version(name, version_id))
            except (NoSuchVersion, CorruptVersion):
                continue  # a stray file, or a folder whose data.txt somebody is writing
        return whole

    def version(self, name: str, version_id: str | None = None) -> ModelVersion:
        """What is known of one version, by default the newest.

        Raises:
            NoSuchVersion: there is none.
            CorruptVersion: what is written of it cannot be read.
            StoreError: it is written in a form that this release does not know.
        """
        if version_id is None:
            versions = self.versions(name)
            if not versions:
                raise NoSuchVersion(f"the store holds no version of {name!r}")
            return versions[-1]
        if not _can_be_named(name) or not _can_be_named(version_id):
            raise NoSuchVersion(f"the store holds no version {version_id!r} of {name!r}")
        try:
            meta = self._board.pin_meta(name, version_id)
            return _described(name, version_id, meta)
        except (PinsError, FileNotFoundError, NotADirectoryError) as error:
            raise NoSuchVersion(f"the store holds no version {version_id!r} of {name!r}") from error
        except (YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CorruptVersion(f"data.txt of {name} {version_id} cannot be read: {reason}") from error

    def attach(self, version: ModelVersion, files: Mapping[str, Path]) -> None:
        """Keep files with a version, by name, inside its folder (anything beside it would count as a pin)."""
        for name, path in files.items():
            self._board.fs.put(str(path), self._path(version, name))

    def open_attached(self, version: ModelVersion, name: str) -> bytes:
        """The content of a file that was attached to a version.

        Raises:
            FileNotFoundError: none of this name was.
        """
        content: bytes = self._board.fs.cat_file(self._path(version, name))
        return content

    def append_document(self, name: str, document: Mapping[str, Any]) -> str:
        """Add a document of JSON types to a pin of such documents; return its id."""
        known = self.document_ids(name)
        meta = self._board.pin_write(
            dict(document),
            name,
            type="json",
            title=name,
            created=_after(known[-1] if known else None),
            force_identical_write=True,
        )
        id_: str = meta.version.version
        return id_

    def document_ids(self, name: str) -> list[str]:
        """The ids of the documents of a pin, those included that are still being written."""
        folder = self._board.construct_path([self._board.path_to_pin(name)])
        try:
            found = self._board.fs.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def document(self, name: str, id_: str) -> dict[str, Any] | None:
        """One document of a pin; None if it is not written whole yet."""
        path = self._board.construct_path([self._board.path_to_pin(name), id_, f"{name}.json"])
        try:
            found: dict[str, Any] = json.loads(self._board.fs.cat_file(path))
        except (FileNotFoundError, ValueError):
            return None
        return found

    def golden_rows(self, version: ModelVersion) -> GoldenRows | None:
        """The golden rows of a version; None if it was stored without examples.

        Raises:
            CorruptVersion: they are not those that were written.
        """
        if GOLDEN not in version.files:
            return None
        try:
            return GoldenRows(**json.loads(self._read_file(version, GOLDEN)))
        except (TypeError, ValueError) as error:
            raise CorruptVersion(f"{GOLDEN} of {version.name} {version.id} holds no golden rows") from error

    def reference(self, version: ModelVersion) -> dict[str, Any] | None:
        """The histograms of the columns in training, as `runoff.reference.histograms` made them.

        Raises:
            CorruptVersion: they are not those that were written.
        """
        if REFERENCE not in version.files:
            return None
        found: dict[str, Any] = json.loads(self._read_file(version, REFERENCE))
        return found

    def load(self, name: str, version_id: str | None = None) -> LoadedModel:
        """Load a version, by default the newest, and see that it says what it said when it was stored.

        Every file's digest is checked before it is used. The translated model serves if it reproduces the
        golden rows; else the estimator is unpickled, and has to reproduce them itself. Where there are none,
        it is served unless scikit-learn itself warns that it was trained under another release.

        Raises:
            NoSuchVersion: there is none.
            CorruptVersion: a file is not the one that was written.
            UnfaithfulVersion: its probabilities are others than when it was stored, or may well be.
            StoreError: it cannot be unpickled here, or is no classifier of two classes.
        """
        version = self.version(name, version_id)
        pickled = self._read_model(version)
        digest = hashlib.sha256(pickled).hexdigest()
        golden = self.golden_rows(version)
        reason = version.untranslated
        if ONNX in version.files and golden:
            try:
                translated = Onnx(self._read_file(version, ONNX))
                off = golden.difference(translated, version.prototype)
            except StoreError:
                raise
            # A graph of a later opset, a machine without onnxruntime: scikit-learn still serves.
            except Exception as error:
                reason = f"onnxruntime cannot evaluate it: {error}"
            else:
                if off <= TOLERANCE:
                    return LoadedModel(version, digest, translated)
                reason = f"onnxruntime is off by {off:.1g} on the golden rows"
        log.info("%s %s is evaluated by scikit-learn: %s", name, version.id, reason)
        return LoadedModel(version, digest, self._scikit_learn(version, pickled, golden), reason)

    def estimator(self, name: str, version_id: str | None = None) -> Any:
        """The scikit-learn estimator of a version, by default the newest, its digest checked.

        Raises:
            NoSuchVersion: there is none.
            CorruptVersion: the file is not the one that was written.
            StoreError: it cannot be unpickled here, or is no classifier of two classes.
        """
        version = self.version(name, version_id)
        return _unpickle(version, self._read_model(version))[0]

    def _scikit_learn(self, version: ModelVersion, pickled: bytes, golden: GoldenRows | None) -> ScikitLearn:
        """The unpickled estimator, if it can be trusted to be the one that was trained."""
        estimator, warned = _unpickle(version, pickled)
        evaluator = ScikitLearn(estimator, version.prototype)
        if golden:
            try:
                off = golden.difference(evaluator, version.prototype)
            # What another release of scikit-learn fails with, when it meets an estimator, is beyond telling.
            except Exception as error:
                raise UnfaithfulVersion(
                    f"{version.name} {version.id} cannot predict its golden rows here: {error}"
                ) from error
            if off > TOLERANCE:
                raise UnfaithfulVersion(
                    f"{version.name} {version.id} is off by {off:.1g} on its golden rows: not served"
                )
            if warned:
                log.warning("%s; its golden rows are reproduced, so it is served", warned)
        elif warned:
            raise UnfaithfulVersion(f"{warned}, and has no golden rows to prove that it says the same")
        return evaluator

    def _version_ids(self, name: str) -> list[str]:
        if not _can_be_named(name) or not self._board.pin_exists(name):
            return []
        return [version.version for version in self._board.pin_versions(name, as_df=False)]

    def _path(self, version: ModelVersion, file: str) -> str:
        path: str = self._board.construct_path([self._board.path_to_pin(version.name), version.id, file])
        return path

    def _read_file(self, version: ModelVersion, file: str) -> bytes:
        """The bytes of a file beside the model."""
        try:
            content = self.open_attached(version, file)
        except FileNotFoundError as error:
            raise CorruptVersion(f"{version.name} {version.id} has lost its {file}") from error
        if hashlib.sha256(content).hexdigest() != version.files[file]:
            raise CorruptVersion(f"{file} of {version.name} {version.id} does not match its recorded digest")
        return content

    def _read_model(self, version: ModelVersion) -> bytes:
        """The bytes of the model file. What is returned is what was checked: it is not read twice."""
        try:
            pickled = self.open_attached(version, f"{version.name}.joblib")
        except FileNotFoundError as error:
            raise CorruptVersion(f"{version.name} {version.id} has lost its model file") from error
        if version.digest is not None:
            intact = hashlib.sha256(pickled).hexdigest() == version.digest
        else:
            # A pin that another tool wrote has only the hash of pins: it shows damage, not malice.
            intact = xxh64(pickled).hexdigest() == version.pin_hash
        if not intact:
            raise CorruptVersion(
                f"the file of {version.name} {version.id} does not match its recorded digest: not unpickled"
            )
        return pickled


def _board_at(place: str) -> BaseBoard:
    protocol, separator, path = place.partition("://")
    if not separator:
        return pins.board_folder(place, versioned=True, allow_pickle_read=False)
    # Others write to the board, too: what it holds is asked anew each time.
    return pins.board(
        protocol,
        path,
        versioned=True,
        cache=None,
        allow_pickle_read=False,
        storage_options={"use_listings_cache": False},
    )


def _can_be_named(name: str) -> bool:
    """Whether a model or a version can have this name, which is that of a folder. Callers send names, too."""
    return name.isprintable() and "/" not in name and name not in ("", ".", "..", RELEASES)


def _described(name: str, version_id: str, meta: Meta) -> ModelVersion:
    """A version, from what pins reads of its data.txt."""
    user = meta.user or {}
    vetiver = user.get("vetiver_meta") or {}
    ours = (user.get("user") or {}).get("runoff") or {}
    if ours.get("format", FORMAT) != FORMAT:
        raise StoreError(f"{name} {version_id} has format {ours['format']}; this release reads {FORMAT}")
    examples: dict[str, Scalar] = json.loads(vetiver.get("prototype") or "{}")
    return ModelVersion(
        name=name,
        id=version_id,
        created=PinVersion.parse_created(meta.created).replace(tzinfo=UTC),
        digest=ours.get("sha256"),
        pin_hash=meta.pin_hash,
        prototype=(Prototype.from_json(ours["prototype"]) if ours else Prototype.from_examples(examples)),
        record=ours.get("record", {}),
        required_packages=tuple(vetiver.get("required_pkgs") or ()),
        python_version=tuple(vetiver.get("python_version") or ()),
        files=ours.get("files", {}),
        untranslated=ours.get("untranslated", "it was stored without examples"),
        size=meta.file_size if isinstance(meta.file_size, int) else None,
    )


def _files(
    estimator: Any, prototype: Prototype, examples: pd.DataFrame | None
) -> tuple[dict[str, bytes], str | None]:
    """What is stored beside the model, and why the model is not translated, where it is not."""
    if examples is None:
        return {}, "it was stored without examples"
    if not hasattr(estimator, "predict_proba"):
        return {}, "it gives no probabilities"
    # Imported here: they need pandas, scikit-learn and the translators, which a service does without.
    from runoff.reference import golden_rows, histograms  # noqa: PLC0415
    from runoff.translation import NotTranslatable, to_onnx  # noqa: PLC0415

    def predict(rows: pd.DataFrame) -> NDArray[np.float64]:
        probabilities: NDArray[np.float64] = estimator.predict_proba(rows)[:, 1]
        return probabilities

    X = examples[list(prototype.names)]
    golden = golden_rows(X, prototype, predict)
    contents = {
        GOLDEN: json.dumps({"rows": golden.rows, "probabilities": golden.probabilities}).encode(),
        REFERENCE: json.dumps(histograms(X, prototype, predict(X))).encode(),
    }
    try:
        return {ONNX: to_onnx(estimator, prototype, X, predict)} | contents, None
    except NotTranslatable as reason:
        return contents, f"it cannot be translated: {reason}"


def _unpickle(version: ModelVersion, pickled: bytes) -> tuple[Any, str | None]:
    """The estimator, and what scikit-learn says if it was trained under another release."""
    import joblib  # noqa: PLC0415 (a translated model is served without it)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator = joblib.load(io.BytesIO(pickled))
        except Exception as error:
            needs = ", ".join(version.required_packages) or "unknown packages"
            raise StoreError(
                f"{version.name} {version.id} cannot be unpickled here (it needs {needs}): {error}"
            ) from error
    if not hasattr(estimator, "predict_proba") or len(getattr(estimator, "classes_", ())) != TWO_CLASSES:
        raise StoreError(f"{version.name} {version.id} is no classifier of two classes with predict_proba")
    for warning in caught:
        trained = getattr(warning.message, "original_sklearn_version", None)
        if trained:
            here = getattr(warning.message, "current_sklearn_version", "another")
            return estimator, f"{version.name} {version.id} was trained by scikit-learn {trained}, not {here}"
    return estimator, None


def _pickle(estimator: Any) -> bytes:
    """The bytes that `pin_write` will store. It takes objects only, so they are dumped once to be hashed."""
    import joblib  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.joblib"
        joblib.dump(estimator, path)
        return path.read_bytes()


def _after(newest: str | None) -> datetime:
    """Now, or the second after the newest version: ids tell seconds only, and their order is their age."""
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    if newest is None:
        return now
    taken: datetime = PinVersion.parse_created(newest.partition("-")[0])
    return max(now, taken + timedelta(seconds=1))
