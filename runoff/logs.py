"""Logs: one JSON object a line on stderr, each with the id of the request that it belongs to."""

from __future__ import annotations

import logging
import os
import sys

import structlog
from structlog.typing import Processor


def configure() -> None:
    """Make all logging of this process, ours and that of libraries, lines of JSON on stderr.

    RUNOFF_LOG_LEVEL says what of ours is worth a line: by default INFO; DEBUG adds one for each request.
    Of libraries it is warnings and errors. Where logging is set up already, that is left as it is.
    """
    level = os.environ.get("RUNOFF_LOG_LEVEL", "INFO").upper()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(capture=True)
    logging.getLogger("runoff").setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
