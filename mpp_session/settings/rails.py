"""Settings of the ways to pay beside the session: charges and x402."""

from typing import Annotated

from msgspec import Meta

from channel.limits import AUTHORIZATION_MARGIN_S, CHARGE_AMOUNT_MIN
from mpp_session.settings.values import INT64_MAX, Positive, Section

__all__ = ["Rails"]


class Rails(Section, frozen=True):
    """Single payments beside the session, for an application's routes with a fixed price."""

    charge: Annotated[
        bool,
        Meta(
            description="Also take `evm` charges (EIP-3009), at the gas cost of the account that "
            "settles. Needs `pip install mpp-session[charge]`. The application does not start if "
            "the token or the gas does not allow it. A gateway refuses it: its routes are metered."
        ),
    ] = False
    x402: Annotated[
        bool, Meta(description="With `charge`: offer the same payment to clients of x402, `exact`.")
    ] = True
    amount_min: Annotated[
        Positive,
        Meta(
            description="Least price of a route that takes them, in base units. A payment costs "
            "some 60,000 to 90,000 gas, so that a lower price may cost more than it brings."
        ),
    ] = CHARGE_AMOUNT_MIN
    gas_budget_wei: Annotated[
        int,
        Meta(
            ge=10**9,
            le=INT64_MAX,
            description="Most gas that is paid within an hour, for all of these payments together.",
        ),
    ] = 2 * 10**16
    gas_price_max_wei: Annotated[Positive, Meta(description="Most to pay per unit of gas.")] = (
        50 * 10**9
    )
    margin_s: Annotated[
        int,
        Meta(
            ge=30,
            le=240,
            description="How long an authorization must still be valid by the chain's clock when "
            "its request begins. The handler must answer within it.",
        ),
    ] = AUTHORIZATION_MARGIN_S
    wait_s: Annotated[
        float,
        Meta(
            gt=0,
            le=120,
            description="How long a client waits for its payment to be mined before the answer "
            "says to retry.",
        ),
    ] = 15.0
