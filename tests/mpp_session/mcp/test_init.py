"""The extra is needed where MCP is used, and nowhere else."""

import importlib
import sys

import pytest

from channel.errors import ConfigError


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 1 of `mcp` has no `mcp_types`, and is none that this works with."""
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    monkeypatch.delitem(sys.modules, "mpp_session.mcp", raising=False)
    with pytest.raises(ConfigError, match=r"pip install mpp-session\[mcp\]"):
        importlib.import_module("mpp_session.mcp")
