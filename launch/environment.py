"""Make `.venv` from the lock: `python3 launch/environment.py [dev]`. Others, apart from it, by `of(lock)`.

This is the one file that runs before anything is installed, so it needs nothing but Python.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
OLDEST = (3, 11)

# What is installed for which purpose. The development lock holds all of the other one.
LOCKS = {"run": "requirements.txt", "dev": "requirements-dev.txt"}


def main(purpose: str) -> int:
    """Make the environment for a purpose, unless it is there already; answer with an exit code."""
    uv = shutil.which("uv")
    if uv is None and sys.version_info < OLDEST:
        wanted, found = ".".join(map(str, OLDEST)), sys.version.split()[0]
        print(f"Runoff needs Python {wanted} or later; this is {found}.", file=sys.stderr)
        print("Name a later one: make run PYTHON=python3.12", file=sys.stderr)
        return 1
    if any(_is_made(each) for each in ("dev", purpose)):
        return 0
    lock = LOCKS[purpose]
    count = sum(line[:1].isalnum() for line in (ROOT / lock).read_text(encoding="utf-8").splitlines())
    tool = "uv" if uv else "pip"
    print(f"Setting up .venv: {count} packages from {lock}, by {tool} …", flush=True)
    try:
        _install(uv, lock)
    except subprocess.CalledProcessError as error:
        print(f"Setting up .venv failed: {tool} exited with {error.returncode}; its message is above.")
        return 1
    _stamp(purpose).write_text(_fingerprint(purpose), encoding="utf-8")
    return 0


def of(lock: Path) -> Path:
    """Make an environment that has a lock's packages and nothing of ours, once for each content of the lock.

    Returns:
        Its interpreter, which is of the same Python as this one.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
    """
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = ROOT / "var" / "environments" / f"{lock.stem}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as alone:
        # One process makes it, and others that need it wait.
        fcntl.flock(alone, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            # The development environment brings uv along, which is several times faster than pip.
            places = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
            install = _installer(shutil.which("uv", path=places), folder, sys.executable)
            _run(*install, "--quiet", "--requirement", str(lock))
            (folder / "made").touch()
    return folder / "bin" / "python"


def _installer(uv: str | None, folder: Path, python: str) -> list[str]:
    """Make an environment where there is none; return the command that installs into it."""
    inside = folder / "bin" / "python"
    if uv:
        if not inside.exists():
            _run(uv, "venv", "--quiet", "--python", python, str(folder))
        # Compiled now, once, rather than by each of the first processes.
        return [uv, "pip", "install", "--compile-bytecode", "--python", str(inside)]
    if not inside.exists():
        venv.create(folder, with_pip=True)
    return [str(inside), "-m", "pip", "install", "--disable-pip-version-check"]


def _install(uv: str | None, lock: str) -> None:
    """Install the lock, then this project itself: editable, and with nothing fetched for its build."""
    install = _installer(uv, VENV, f">={'.'.join(map(str, OLDEST))}")
    quiet = [] if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ["--quiet"]
    _run(*install, *quiet, "--requirement", str(ROOT / lock))
    _run(*install, "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def _run(*command: str) -> None:
    # uv is to trust whom the system trusts: a company may have a certificate authority of its own.
    surroundings = os.environ | {"UV_SYSTEM_CERTS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=surroundings)  # noqa: S603 (what is run is written above)


def _is_made(purpose: str) -> bool:
    stamp = _stamp(purpose)
    return stamp.exists() and stamp.read_text(encoding="utf-8") == _fingerprint(purpose)


def _stamp(purpose: str) -> Path:
    return VENV / f"made-for-{purpose}"


def _fingerprint(purpose: str) -> str:
    """What the environment depends on: another lock, or another place of this checkout, makes a new one."""
    parts = [str(ROOT), *((ROOT / name).read_text("utf-8") for name in ("pyproject.toml", LOCKS[purpose]))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "run"))
