"""What differs between the endpoints that a gateway sells (pure)."""

from collections.abc import Callable
from typing import Final

import msgspec

from channel.tariff import Tariff
from mpp_session.gateway.counting import Reader
from mpp_session.gateway.endpoints.fields import Bounds, ModelRequest

__all__ = ["GatewayEndpoint"]

_INPUTS: Final = frozenset({"input_token", "cached_input_token", "cache_write_token"})


class GatewayEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One path of a model server, sold by the tokens that it reads and makes."""

    name: str
    """As price tables call it: `chat.completions`."""
    path: str
    parse: Callable[[bytes, Bounds], ModelRequest]
    """Raises BadRequestError for what cannot be sold."""
    reader: Callable[[], Reader]
    """Returns a new reader for the chunks of one answer, or for a whole one."""
    has_output: bool = True
    """Whether it makes tokens; otherwise it is sold by its input alone."""
    nested: str | None = None
    """The member of a stream's last event that holds the usage. None: the chunk itself does, and
    `[DONE]` follows."""
    counts: tuple[str, str] = ("prompt_tokens", "completion_tokens")
    """How a usage record calls tokens read and made."""
    error_event: str | None = None
    """The name of the event that reports an error in mid-stream."""
    fields: frozenset[str]
    """Those of a request that reach the model server."""

    def is_sold_by(self, tariff: Tariff) -> bool:
        """Whether a tariff has a price for what this endpoint does: never sold for nothing."""
        if self.has_output:
            return not _INPUTS.issuperset(tariff.kinds)
        return "input_token" in tariff.kinds
