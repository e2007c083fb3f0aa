"""What the integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from router import database
from tests import databases
from tests.house import House, a_router, running_without_dashboard


@pytest.fixture(scope="session")
def house(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Models and a router that the tests share; each looks only at what it added."""
    with running_without_dashboard(tmp_path_factory.mktemp("house"), board) as shared:
        yield shared


@pytest.fixture(scope="session")
def models(house: House) -> House:
    """The house whose models others ask, too."""
    return house


@pytest.fixture
def own_router(board: Path, models: House, tmp_path: Path) -> Iterator[House]:
    """A router for one test alone, before models that are everybody's."""
    with a_router(tmp_path, board, models) as own:
        yield own


@pytest.fixture
def own_house(board: Path, tmp_path: Path) -> Iterator[House]:
    """Models and a router for one test alone, which may break them."""
    with running_without_dashboard(tmp_path, board) as own:
        yield own


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """An empty ledger of each kind of database."""
    made = database.connect(databases.ledger(request.param, tmp_path))
    yield made
    made.dispose()
