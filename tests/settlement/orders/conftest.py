"""Orders on each database: every test of the promise runs on both (habit 10)."""

from tests.postgres import _asyncpg_may_stat, postgres_server, postgres_url
from tests.settlement.journal.conftest import journal_url

__all__ = ["_asyncpg_may_stat", "journal_url", "postgres_server", "postgres_url"]
