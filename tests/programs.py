"""Programs that are not Python's or npm's: from PATH, or fetched from Debian; else a test skips."""

from pathlib import Path

import pytest

from debian import find_program

__all__ = ["require_program"]


def require_program(name: str) -> Path:
    """Return the program `name` of `scripts/debian.py`; skip the test where it cannot be had."""
    path, reason = find_program(name)
    if path is None:
        pytest.skip(reason)
    return path
