"""Execute a notebook, and make a page of it that needs no network to be read."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

if TYPE_CHECKING:
    from nbclient import NotebookClient

CELL_SECONDS = 600

# Takes how many code cells are done.
OnCell = Callable[[int], None]


class NotebookFailed(Exception):
    """A notebook did not run to its end; the message names the cell and where the notebook is kept."""


def count_cells(source: Path) -> int:
    """How many cells a notebook's execution reports."""
    return sum(cell.cell_type == "code" for cell in nbformat.read(source, as_version=4).cells)


def execute(source: Path, parameters: Mapping[str, Any], name: str, on_cell: OnCell) -> nbformat.NotebookNode:
    """Execute a notebook; returns it with its outputs.

    Args:
        source: its file.
        parameters: what is set in place of its own, by name.
        name: under which it is kept where it fails.
        on_cell: told after each code cell how many are done, of those that `count_cells` counts.

    Raises:
        NotebookFailed: a cell raised an error, took too long, or lost its kernel.
    """
    # Imported here, since a start that has nothing to execute need not wait for them.
    from nbclient import NotebookClient  # noqa: PLC0415
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError  # noqa: PLC0415
    from papermill.iorw import load_notebook_node  # noqa: PLC0415
    from papermill.parameterize import parameterize_notebook  # noqa: PLC0415

    notebook: nbformat.NotebookNode = parameterize_notebook(load_notebook_node(str(source)), dict(parameters))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # The cell of parameters that papermill adds is not one that a reader of the source counts.
    total = count_cells(source)
    done = 0

    def executed(**_: object) -> None:
        nonlocal done
        done += 1
        on_cell(min(done, total))

    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        # Where the caller is: a relative path names the same file here and there.
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
        raise NotebookFailed(
            f"{source.name} failed in code cell {done}, which begins with\n"
            f"    {code[done - 1].source.partition(chr(10))[0]}\n"
            f"{_reason(error)}\n"
            f"The notebook as far as it came is {kept}"
        ) from error
    return notebook


def page(notebook: nbformat.NotebookNode, name: str, *, code: bool = True) -> str:
    """An executed notebook as HTML that loads nothing from elsewhere.

    Args:
        notebook: with its outputs.
        name: the title of the page.
        code: whether the cells' source is shown.
    """
    from nbconvert import HTMLExporter  # noqa: PLC0415

    exporter = HTMLExporter(mathjax_url="", require_js_url="", exclude_input_prompt=True)
    exporter.exclude_output_prompt = True
    exporter.exclude_input = not code
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": name}})
    return str(html)


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


def _reason(error: Exception) -> str:
    """The error of a cell as Python would end its traceback, or what else went wrong."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    return f"{name}: {value}"
