"""A PostgreSQL beside SQLite for the faults of the ledgers."""

from tests.postgres import _asyncpg_may_stat, postgres_server, postgres_url

__all__ = ["_asyncpg_may_stat", "postgres_server", "postgres_url"]
