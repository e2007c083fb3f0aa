"""Execute the notebook of the decision: `python -m notebooks.decide`, on a running router or on files.

The executed notebook and a page of it are written beside each other: `var/decide.ipynb`, `var/decide.html`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat

from notebooks import executed

NOTEBOOK = Path(__file__).resolve().parent / "decide.ipynb"
PLACE = Path("var", "decide.html")


def decide(page: Path, **parameters: str | None) -> nbformat.NotebookNode:
    """Execute the notebook, and write it and its page; returns it executed.

    Args:
        page: where the page goes; the notebook is put beside it.
        parameters: those of the notebook, by name.

    Raises:
        NotebookFailed: a cell failed; the message says which, and why.
    """
    notebook = executed.execute(NOTEBOOK, parameters, "decide", lambda _: None)
    page.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, page.with_suffix(".ipynb"))
    page.write_text(executed.page(notebook, NOTEBOOK.stem, code=False), encoding="utf-8")
    return notebook


def main() -> int:
    """Read the command line, execute, and answer with an exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m notebooks.decide", description="Make the page of the decision which model stays."
    )
    parser.add_argument("--router", metavar="URL", help="default: RUNOFF_ROUTER_URL, else that of `make run`")
    parser.add_argument("--tag", default="real", help="of which traffic; all for any (default: real)")
    parser.add_argument("--rows", dest="export_file", metavar="FILE", help="an export; default: the router's")
    parser.add_argument(
        "--verdict",
        dest="verdict_file",
        metavar="FILE",
        help="what `runoff verdict --json` wrote",
    )
    parser.add_argument("--page", type=Path, default=PLACE, help=f"where it goes (default: {PLACE})")
    given = vars(parser.parse_args())
    page = given.pop("page")
    try:
        decide(page, **given)
    except executed.NotebookFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The decision, with what it rests on: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
