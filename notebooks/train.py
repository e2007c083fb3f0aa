"""Execute the training notebooks: `python -m notebooks.train`.

A notebook writes a version into the store by itself. What is added here: it is executed only when the
store holds no version of the same data and code, and its executed form and HTML are kept with the version.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import nbformat

from data import credit
from notebooks import executed
from notebooks.executed import OnCell
from runoff.processes import INTERRUPTED
from runoff.store import ModelVersion, Store

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent

# The notebook of each model, in the order of training: B compares itself with A.
NOTEBOOKS = {"model-a": FOLDER / "train_model_a.ipynb", "model-b": FOLDER / "train_model_b.ipynb"}

# What a trained model depends on, besides its notebook and the data.
LIBRARY = ("evaluation", "evaluators", "figures", "prototype", "reference", "store", "translation")
CODE = ("data/credit.py", *(f"runoff/{name}.py" for name in LIBRARY))
PACKAGES = ("scikit-learn", "numpy", "pandas", "treelite", "skl2onnx", "onnx")


class TrainingFailed(Exception):
    """A notebook did not run to its end; the message names the cell and where the notebook is kept."""


def code_digest(name: str) -> str:
    """The SHA-256 of what trains a model: its notebook's source, our library, the packages' versions."""
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    parts = [
        *(cell.source for cell in notebook.cells),
        *((ROOT / path).read_text(encoding="utf-8") for path in CODE),
        *(f"{package} {version(package)}" for package in PACKAGES),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def trained(store: Store, name: str) -> ModelVersion | None:
    """The newest version of a model, if it was trained from the data and code as they are now.

    An older one that fits does not count: the services load the newest, and one that was trained on other
    data has seen clients whom these data hold out.
    """
    newest = next(reversed(store.versions(name)), None)
    wanted = {"data_digest": credit.digest(credit.load()), "code_digest": code_digest(name)}
    return newest if newest and wanted.items() <= newest.record.items() else None


def count_cells(name: str) -> int:
    """How many cells a notebook's execution reports."""
    return executed.count_cells(NOTEBOOKS[name])


def train_one(store: Store, name: str, on_cell: OnCell) -> ModelVersion:
    """Execute a model's notebook, and keep it with the version that it wrote.

    Args:
        store: where the version goes.
        name: of the model.
        on_cell: told after each code cell how many are done, of those that `count_cells` counts.

    Raises:
        TrainingFailed: a cell raised an error, took too long, or lost its kernel.
    """
    try:
        notebook = executed.execute(NOTEBOOKS[name], {"board": store.place}, name, on_cell)
    except executed.NotebookFailed as error:
        raise TrainingFailed(str(error)) from error
    written = trained(store, name)
    if written is None:
        raise TrainingFailed(f"{NOTEBOOKS[name].name} ran, and wrote no version of this data and code")
    _keep(store, written, notebook)
    return written


def train(board: str | None, on_cell: Callable[[str, int], None]) -> list[ModelVersion]:
    """Train each model of which the store holds no version of this data and code; return the versions."""
    store = Store.open(board)
    return [trained(store, name) or train_one(store, name, partial(on_cell, name)) for name in NOTEBOOKS]


def _keep(store: Store, written: ModelVersion, notebook: nbformat.NotebookNode) -> None:
    """Attach the executed notebook and its HTML, which needs no network to be read."""
    html = executed.page(notebook, NOTEBOOKS[written.name].stem)
    with tempfile.TemporaryDirectory() as folder:
        document, page = Path(folder) / "notebook.ipynb", Path(folder) / "notebook.html"
        nbformat.write(notebook, document)
        page.write_text(html, encoding="utf-8")
        store.attach(written, {document.name: document, page.name: page})


def main() -> int:
    """Train what needs training, and say what the store then holds."""
    try:
        versions = train(None, _say)
    except (TrainingFailed, credit.BadData, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    for each in versions:
        metrics = {name: round(figures["value"], 4) for name, figures in each.record["metrics"].items()}
        print(f"{each.name} {each.id}: {json.dumps(metrics)}")
    return 0


def _say(name: str, done: int) -> None:
    print(f"{name}: cell {done} of {count_cells(name)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
