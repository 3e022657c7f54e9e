"""Tools of the Model Context Protocol, sold and paid for (draft-payment-transport-mcp-00).

Needs the extra `mcp`: `pip install mpp-session[mcp]`. Nothing else of this package imports it.
"""

from importlib.util import find_spec

from channel.errors import ConfigError

__all__: list[str] = []

if find_spec("mcp_types") is None:  # the package `mcp` has it since its version 2
    raise ConfigError(
        "the package mcp, version 2, is not installed: `pip install mpp-session[mcp]`"
    )
