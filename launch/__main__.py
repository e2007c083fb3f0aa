"""`python -m launch [--smoke]`: the command that trains both models and starts the four services."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType

from launch.progress import Voice, stopped
from launch.services import LaunchError, ports


def main(*, smoke: bool) -> int:
    """Run the whole loop, and return an exit code.

    Args:
        smoke: stop after the burst; the exit code says whether all of it went through.
    """
    voice = Voice()
    # SIGINT, too: a shell that starts a job in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        chosen = ports(os.environ)
        # Imported here: a port that is taken is named before the libraries are loaded, which takes seconds.
        from launch import loop  # noqa: PLC0415
    except LaunchError as error:
        voice.say(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        return stopped(voice, smoke=smoke)
    return loop.run(voice, chosen, smoke=smoke)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _asked() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Train both models, start the four services, send a first burst of traffic, and stay up.",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="stop after the burst; the exit code tells of it"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(smoke=_asked().smoke))
