"""SQL as it lies in `sql/`: named queries and numbered migrations, read once."""

import re
from importlib.resources import files
from typing import Final

__all__ = ["load_migrations", "load_queries"]

_NAME: Final = re.compile(r"^-- (\w+) --$", re.MULTILINE)
_MIGRATION: Final = re.compile(r"(\d{4})_\w+\.sql")


def load_queries(dialect: str, package: str = __package__) -> dict[str, str]:
    """Return the queries of a package's `sql/<dialect>/queries.sql` by name."""
    text = (files(package) / "sql" / dialect / "queries.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return {name: _without_comments(sql) for name, sql in zip(parts[::2], parts[1::2], strict=True)}


def load_migrations(dialect: str, package: str = __package__) -> dict[int, str]:
    """Return the migrations of `sql/<dialect>` by the version they lead to, in order."""
    found = {}
    for path in (files(package) / "sql" / dialect).iterdir():
        if named := _MIGRATION.fullmatch(path.name):
            found[int(named[1])] = path.read_text(encoding="utf-8")
    return dict(sorted(found.items()))


def _without_comments(sql: str) -> str:
    return "\n".join(line for line in sql.splitlines() if not line.startswith("--")).strip()
