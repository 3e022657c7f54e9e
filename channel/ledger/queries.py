"""Loads a package's `sql/`: named queries and numbered migrations, read once."""

import re
from importlib.resources import files
from typing import Final

import msgspec

from channel.errors import ConfigError
from channel.sql import parse_queries

__all__ = [
    "OLDER_TABLES",
    "Schema",
    "TablesMissingError",
    "load_queries",
    "load_schema",
]

_MIGRATION: Final = re.compile(r"(\d{4})_\w+\.sql")


OLDER_TABLES: Final = (
    "an older version wrote the ledger, without the tables that this command reads, and a command "
    "that only reads migrates nothing: use the version of the running gateway, or start the "
    "gateway of this version once"
)


class TablesMissingError(ConfigError):
    """A database that is to be read only has no tables."""


class Schema(msgspec.Struct, frozen=True):
    """The tables of the ledger, the journal or the orders, version by version.

    Each has its own version, in a table with one row: `<name>_schema`.
    """

    name: str
    migrations: dict[int, str]
    """The scripts, in order, keyed by the version that each leads to."""
    reads_from: int | None = None
    """The oldest version that this program can read unchanged; the newest if None."""

    @property
    def create_version(self) -> str:
        """The statement that creates the version table."""
        return self._fill("create_version")

    @property
    def select_version(self) -> str:
        """The query for the version; no row before the first migration."""
        return self._fill("select_version")

    @property
    def insert_version(self) -> str:
        """The statement that records version 0."""
        return self._fill("insert_version")

    def update_version(self, version: int) -> str:
        """Return the statement that records a version."""
        return self._fill("update_version", version=version)

    def _fill(self, query: str, **numbers: int) -> str:
        return _VERSION[query].format(table=f"{self.name}_schema", **numbers)

    def require_known(self, version: int) -> None:
        """Refuse tables that a newer program has changed.

        Raises:
            ConfigError: This program does not know the version.
        """
        known = max(self.migrations)
        if version > known:
            raise ConfigError(
                f"the {self.name} has schema version {version}, this program knows up to {known}: "
                "run the version that wrote it, or a newer one"
            )

    def require_readable(self, version: int | None) -> None:
        """Refuse tables that this program cannot read unchanged; `version` None means no tables.

        Raises:
            TablesMissingError: There are no tables.
            ConfigError: A newer version wrote them, or one that is too old.
        """
        if version is None:
            raise TablesMissingError(
                f"the database has no tables of the {self.name}: name the database that the "
                "gateway uses, or start the gateway once"
            )
        self.require_known(version)
        newest = max(self.migrations)
        if version < (self.reads_from or newest):
            raise ConfigError(
                f"the {self.name} has schema version {version}, and this program reads "
                f"{newest} and migrates nothing when it only reads: use the version of the running "
                "gateway, or start the gateway of this version first"
            )


def load_queries(dialect: str, package: str = __package__) -> dict[str, str]:
    """Return the queries of a package's `sql/<dialect>/queries.sql` by name."""
    path = files(package) / "sql" / dialect / "queries.sql"
    return parse_queries(path.read_text(encoding="utf-8"))


def load_schema(
    name: str, dialect: str, package: str = __package__, *, reads_from: int | None = None
) -> Schema:
    """Return the migrations of a package's `sql/<dialect>`; see `Schema` for `reads_from`."""
    found = {}
    for path in (files(package) / "sql" / dialect).iterdir():
        if named := _MIGRATION.fullmatch(path.name):
            found[int(named[1])] = path.read_text(encoding="utf-8")
    return Schema(name, dict(sorted(found.items())), reads_from)


_VERSION: Final = load_queries("version")
