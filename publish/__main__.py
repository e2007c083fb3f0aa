"""Publish to Posit Connect: `python -m publish model-a`, with CONNECT_SERVER and CONNECT_API_KEY set.

Each bundle is written to `var/publish/`, where rsconnect-python makes its manifest and remembers which
content of which server it is, so that publishing again updates that one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from publish.bundles import BUNDLES, ROOT, Bundle, write

PLACE = Path("var", "publish")
# Where rsconnect-python remembers what it has published from a folder.
MEMORY = "rsconnect-python"


def make_manifest(bundle: Bundle, folder: Path) -> Path:
    """Write a bundle with the manifest by which a platform knows what it is.

    Args:
        bundle: what to write.
        folder: where it is written; what lies there is removed, all but rsconnect-python's memory.

    Returns:
        The manifest.

    Raises:
        subprocess.CalledProcessError: rsconnect-python fails; it has said why.
    """
    for path in folder.iterdir() if folder.exists() else ():
        if not path.is_dir():
            path.unlink()
        elif path.name != MEMORY:
            shutil.rmtree(path)
    write(bundle, folder)
    # Of an app rsconnect-python takes all that lies in its folder, of a notebook the files that it is told.
    what = ["--entrypoint", bundle.entrypoint, "."]
    if bundle.kind == "notebook":
        files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        what = [bundle.entrypoint, *(str(path) for path in files if MEMORY not in path.parts)]
    _rsconnect("write-manifest", bundle.kind, *what, cwd=folder)
    return folder / "manifest.json"


def publish(bundle: Bundle, folder: Path, options: list[str]) -> None:
    """Write a bundle, and let rsconnect-python deploy it.

    Args:
        bundle: what to publish.
        folder: where it is written, as `make_manifest` does.
        options: for `rsconnect deploy manifest`.

    Raises:
        subprocess.CalledProcessError: rsconnect-python fails; it has said why.
    """
    manifest = make_manifest(bundle, folder)
    variables = [f"--environment={name}" for name in bundle.variables if os.environ.get(name)]
    _rsconnect("deploy", "manifest", *variables, *options, str(manifest), cwd=folder)


def _rsconnect(*arguments: str, cwd: Path) -> None:
    # Installed beside the interpreter, as all commands of an environment are.
    command = [str(Path(sys.executable).with_name("rsconnect")), *arguments]
    subprocess.run(command, check=True, cwd=cwd)  # noqa: S603 (what is run is written above)


def main() -> int:
    """Read the command line, publish, and answer with an exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m publish",
        description="Publish services and notebooks to Posit Connect.",
        epilog="What stands after -- goes to `rsconnect deploy manifest`: for instance -- --app-id GUID.",
    )
    names = parser.add_argument(
        "names", nargs="+", metavar="NAME", help=f"all, or some of {', '.join(BUNDLES)}"
    )
    names.choices = ["all", *BUNDLES]
    parser.add_argument(
        "--manifest", action="store_true", help=f"only write bundles with their manifests, into {PLACE}/"
    )
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given, options = parser.parse_args(arguments[:end]), arguments[end + 1 :]
    try:
        for name in BUNDLES if "all" in given.names else given.names:
            folder = ROOT / PLACE / name
            if given.manifest:
                make_manifest(BUNDLES[name], folder)
                print(f"{name} is written to {PLACE / name}/", flush=True)
            else:
                print(f"Publishing {name} …", flush=True)
                publish(BUNDLES[name], folder, options)
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
