"""The orders are in the ledger's database, by its URL; none other is taken for PostgreSQL."""

import pytest

from channel.errors import ConfigError
from channel.types import Address
from settlement.sponsor.orders.url import open_orders


@pytest.mark.parametrize("url", ["", "ledger.db", "mysql://host/db", "sqlite:///:memory:"])
async def test_any_other_url_is_refused(url: str) -> None:
    """F-106: named as what it is, before a database is asked."""
    with pytest.raises(ConfigError, match="sqlite:///"):
        await open_orders(url, chain_id=1, escrow=Address(bytes(20)))
