"""Execute the training notebooks: `python -m notebooks.train`.

A notebook writes a version into the store by itself. What is added here: it is executed only when the
store holds no version of the same data and code, and its executed form and HTML are kept with the version.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

if TYPE_CHECKING:
    from nbclient import NotebookClient

from data import credit
from runoff.store import ModelVersion, Store

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
CELL_SECONDS = 600
# What a shell takes for "stopped by Ctrl-C".
INTERRUPTED = 130

# The notebook of each model, in the order of training: B compares itself with A.
NOTEBOOKS = {"model-a": FOLDER / "train_model_a.ipynb", "model-b": FOLDER / "train_model_b.ipynb"}

# What a trained model depends on, besides its notebook and the data.
LIBRARY = ("evaluation", "evaluators", "figures", "prototype", "reference", "store", "translation")
CODE = ("data/credit.py", *(f"runoff/{name}.py" for name in LIBRARY))
PACKAGES = ("scikit-learn", "numpy", "pandas", "treelite", "skl2onnx", "onnx")

# Takes how many code cells are done.
OnCell = Callable[[int], None]


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
    return sum(cell.cell_type == "code" for cell in nbformat.read(NOTEBOOKS[name], as_version=4).cells)


def train_one(store: Store, name: str, on_cell: OnCell) -> ModelVersion:
    """Execute a model's notebook, and keep it with the version that it wrote.

    Args:
        store: where the version goes.
        name: of the model.
        on_cell: told after each code cell how many are done, of those that `count_cells` counts.

    Raises:
        TrainingFailed: a cell raised an error, took too long, or lost its kernel.
    """
    # Imported here, since a start that has nothing to train need not wait for them.
    from nbclient import NotebookClient  # noqa: PLC0415
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError  # noqa: PLC0415
    from papermill.iorw import load_notebook_node  # noqa: PLC0415
    from papermill.parameterize import parameterize_notebook  # noqa: PLC0415

    notebook = parameterize_notebook(load_notebook_node(str(NOTEBOOKS[name])), {"board": store.place})
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # The cell of parameters that papermill adds is not one that a reader of the source counts.
    total = count_cells(name)
    done = 0

    def executed(**_: object) -> None:
        nonlocal done
        done += 1
        on_cell(min(done, total))

    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        # Where the caller is: a relative CREDIT_DATA names the same file here and there.
        resources={"metadata": {"path": str(Path.cwd())}},
        on_cell_executed=executed,
        # Of each kernel, jupyter warns that it listens on loopback without encryption.
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    try:
        # One thread: two runs at once, with a thread for each core each, would spin on each other.
        _execute(client, os.environ | {"OMP_NUM_THREADS": "1"})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        kept = Path(tempfile.gettempdir()) / f"{name}-failed.ipynb"
        nbformat.write(notebook, kept)
        raise TrainingFailed(
            f"{NOTEBOOKS[name].name} failed in code cell {done}, which begins with\n"
            f"    {code[done - 1].source.partition(chr(10))[0]}\n"
            f"{_reason(error)}\n"
            f"The notebook as far as it came is {kept}"
        ) from error
    written = trained(store, name)
    if written is None:
        raise TrainingFailed(f"{NOTEBOOKS[name].name} ran, and wrote no version of this data and code")
    _keep(store, written, notebook)
    return written


def _execute(client: NotebookClient, environment: dict[str, str]) -> None:
    """Execute a notebook in a thread: in the main thread nbclient would take Ctrl-C for itself."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.execute, env=environment)
        try:
            running.result()
        except KeyboardInterrupt:
            kernel: Any = client.km
            if kernel and kernel.has_kernel:
                asyncio.run(kernel.signal_kernel(signal.SIGKILL))
            raise


def train(board: str | None, on_cell: Callable[[str, int], None]) -> list[ModelVersion]:
    """Train each model of which the store holds no version of this data and code; return the versions."""
    store = Store.open(board)
    return [trained(store, name) or train_one(store, name, partial(on_cell, name)) for name in NOTEBOOKS]


def _keep(store: Store, written: ModelVersion, notebook: nbformat.NotebookNode) -> None:
    """Attach the executed notebook and its HTML, which needs no network to be read."""
    from nbconvert import HTMLExporter  # noqa: PLC0415

    exporter = HTMLExporter(mathjax_url="", require_js_url="", exclude_input_prompt=True)
    exporter.exclude_output_prompt = True
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": NOTEBOOKS[written.name].stem}})
    with tempfile.TemporaryDirectory() as folder:
        executed, page = Path(folder) / "notebook.ipynb", Path(folder) / "notebook.html"
        nbformat.write(notebook, executed)
        page.write_text(html, encoding="utf-8")
        store.attach(written, {executed.name: executed, page.name: page})


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


def _reason(error: Exception) -> str:
    """The error of a cell as Python would end its traceback, or what else went wrong."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    return f"{name}: {value}"


def _say(name: str, done: int) -> None:
    print(f"{name}: cell {done} of {count_cells(name)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
