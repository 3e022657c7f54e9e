"""Settings of how many paid requests one process serves."""

from typing import Annotated

import msgspec
from msgspec import Meta

from channel.http.running import RequestLimits
from channel.limits import (
    REQUESTS_PER_PAYER_AND_SECOND_MAX,
    REQUESTS_PER_SOURCE_AND_SECOND_MAX,
    RUNNING_PER_PAYER_MAX,
    RUNNING_PER_SOURCE_MAX,
    RUNNING_REQUESTS_MAX,
)
from mpp_session.settings.values import Positive, Section

__all__ = ["Limits"]


class Limits(Section, frozen=True, kw_only=True):
    """How many paid requests one process serves. Beyond it they are refused before the model runs.

    Vouchers for streams that run, and closes, are never refused by these. With several workers each
    has these bounds for itself.
    """

    running_max: Annotated[
        Positive,
        Meta(
            description="Most paid requests that run at a time; more get 503 `server-busy` with "
            "`Retry-After`. Set it to what the model server can run and queue."
        ),
    ] = RUNNING_REQUESTS_MAX
    running_per_address: Annotated[
        Positive,
        Meta(
            description="Most of them of one client address; more get 429 `rate-limited`. Raise it "
            "where a proxy hides its clients (`FORWARDED_ALLOW_IPS`)."
        ),
    ] = RUNNING_PER_SOURCE_MAX
    running_per_payer: Annotated[
        Positive,
        Meta(description="Most of them of one payer, on all its channels; more get 429."),
    ] = RUNNING_PER_PAYER_MAX
    per_second_per_address: Annotated[
        Positive,
        Meta(description="Most paid requests that one client address begins a second."),
    ] = REQUESTS_PER_SOURCE_AND_SECOND_MAX
    per_second_per_payer: Annotated[
        Positive,
        Meta(description="Most paid requests that one payer begins a second."),
    ] = REQUESTS_PER_PAYER_AND_SECOND_MAX

    def of_gate(self) -> RequestLimits:
        """Return them for a `PaymentGate`."""
        return RequestLimits(**msgspec.structs.asdict(self))
