"""What the integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from router import database
from tests import databases
from tests.house import House, running_without_dashboard


@pytest.fixture
def own_house(board: Path, tmp_path: Path) -> Iterator[House]:
    """Models and a router for one test alone, which may break them."""
    with running_without_dashboard(tmp_path, board) as own:
        yield own


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """An empty ledger of each kind of database."""
    made = database.connect(databases.ledger(request.param, tmp_path))
    yield made
    made.dispose()
