"""One small shop for all tests of backtests."""

import pytest
from small_versions import SmallShop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> SmallShop:
    return SmallShop(tmp_path_factory.mktemp("shop"))
