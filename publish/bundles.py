"""What is published: for each service and notebook the files that go in, and the packages that it needs.

A bundle has the shape of this checkout, with its root as the bundle's, so that `model_a.app:app` imports
`runoff` there as it does here; of the rooms it holds only those that are needed.
"""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "publish" / "requirements"

# Under which name a platform looks for the packages, and rsconnect-python for the Python that is needed.
PACKAGES_FILE, PYTHON_FILE = "requirements.txt", ".python-version"


@dataclass(frozen=True)
class Bundle:
    """One thing to publish.

    Args:
        name: how the command line calls it.
        kind: what rsconnect-python takes it for.
        entrypoint: `module:app`, or the file of the notebook.
        rooms: the folders of the house that go in: its own, and those that it imports.
        requirements: which list of packages in `publish/requirements/` it needs.
        files: what else goes in, by its path in this checkout; it stands at the bundle's root.
        variables: of the environment, without which it would not find the others; those that are set where
            it is published from are set there, too.
    """

    name: str
    kind: Literal["api", "dash", "notebook"]
    entrypoint: str
    rooms: tuple[str, ...]
    requirements: str
    files: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()

    @property
    def packages(self) -> Path:
        """The packages with their exact versions, as `make lock` compiled them."""
        return REQUIREMENTS / f"{self.requirements}.txt"


def _prediction(name: str) -> Bundle:
    room = name.replace("-", "_")
    variables = ("RUNOFF_BOARD", "RUNOFF_OPERATOR_KEY")
    return Bundle(name, "api", f"{room}.app:app", (room, "runoff"), "prediction", variables=variables)


def _notebook(name: str, file: str, room: str, *variables: str) -> Bundle:
    # A notebook runs where it lies, and imports the rooms from there: so it lies at the root.
    return Bundle(
        name,
        "notebook",
        file,
        (room, "notebooks", "runoff"),
        "notebooks",
        files=(f"notebooks/{file}",),
        variables=variables,
    )


BUNDLES = {
    bundle.name: bundle
    for bundle in (
        _prediction("model-a"),
        _prediction("model-b"),
        Bundle(
            "router",
            "api",
            "router.app:app",
            ("router", "runoff", "verdict"),
            "router",
            files=("experiment.toml",),
            variables=(
                *("MODEL_A_URL", "MODEL_B_URL", "RUNOFF_LEDGER", "RUNOFF_SECRET"),
                *("RUNOFF_OPERATOR_KEY", "RUNOFF_DASHBOARD_KEY"),
            ),
        ),
        Bundle(
            "dashboard",
            "dash",
            "dashboard.app:app",
            ("dashboard", "data", "runoff", "traffic", "verdict"),
            "dashboard",
            variables=("ROUTER_URL", "RUNOFF_DASHBOARD_KEY"),
        ),
        _notebook("notebook-a", "train_model_a.ipynb", "data", "RUNOFF_BOARD", "CREDIT_DATA"),
        _notebook("notebook-b", "train_model_b.ipynb", "data", "RUNOFF_BOARD", "CREDIT_DATA"),
        _notebook("notebook-decide", "decide.ipynb", "verdict", "RUNOFF_ROUTER_URL", "RUNOFF_DASHBOARD_KEY"),
    )
}


def write(bundle: Bundle, folder: Path) -> None:
    """Write a bundle's files into a folder, which is made.

    Raises:
        FileExistsError: the folder holds one of them already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for room in bundle.rooms:
        # What Python and editors leave behind is no part of a room.
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / room, folder / room, ignore=ignored)
    for file in bundle.files:
        shutil.copy(ROOT / file, folder)
    shutil.copy(bundle.packages, folder / PACKAGES_FILE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (folder / PYTHON_FILE).write_text(f"{project['requires-python']}\n", encoding="utf-8")
