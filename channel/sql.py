"""SQL with names: a `.sql` file holds many queries, and Python asks for one by its name.

-- load_channel --
-- What it is for.
SELECT ...;
"""

import re
from typing import Final

__all__ = ["parse_queries"]

_NAME: Final = re.compile(r"^-- (\w+) --$", re.MULTILINE)


def parse_queries(text: str) -> dict[str, str]:
    """Return the queries of a file by name, without their comments."""
    _, *parts = _NAME.split(text)
    return {name: _without_comments(sql) for name, sql in zip(parts[::2], parts[1::2], strict=True)}


def _without_comments(sql: str) -> str:
    return "\n".join(line for line in sql.splitlines() if not line.startswith("--")).strip()
