"""Settings of the ledger, of settling, and of the bounds on unsettled amounts."""

from typing import Annotated, Literal

from msgspec import Meta

from channel.ledger.accounts import DAY_S, AccountSettings
from channel.limits import (
    AUTHORIZATION_MARGIN_S,
    CHANNELS_CACHED_MAX,
    CHARGES_DAYS,
    CLOSE_TIMEOUT_S,
    GRACE_PERIOD_S_MIN,
    SPONSORED_DEPOSIT_MIN,
    SPONSORED_GAS_MAX,
    SPONSORED_PER_SOURCE_MAX,
)
from mpp_session.settings.values import INT64_MAX, Positive, Section

__all__ = [
    "Exposure",
    "Ledger",
    "Settlement",
    "Sponsoring",
    "Tower",
]


class Ledger(Section, frozen=True):
    """The ledger: channels, vouchers and charges."""

    url: Annotated[
        str,
        Meta(
            description="`sqlite:////absolute/path.db` for one gateway process, "
            "`postgresql://...` for several. A ledger in memory is refused. With three "
            "slashes the path is relative to this file, and refused in the environment."
        ),
    ]
    state_dir: Annotated[
        str | None,
        Meta(
            description="Directory on this machine, outside the database and its backups, in "
            "which the gateway records which ledger the payee has and what that "
            "ledger has acknowledged. It detects an old copy of the ledger. In a "
            "container, use a volume. Unset: `mpp-session` in `$XDG_STATE_HOME`, in "
            "root's `/var/lib`, or in `~/.local/state`."
        ),
    ] = None
    channels_cached: Annotated[
        int,
        Meta(
            ge=2,
            description="Most recently used channels kept in the gateway's memory, about 1 kB "
            "each. A voucher of another channel costs one read of the database.",
        ),
    ] = CHANNELS_CACHED_MAX
    charges: Annotated[
        bool,
        Meta(
            description="Keep one row for each paid request: time, channel, route, model, usage, "
            "amount and outcome. `export` and `GET /v1/generation` read them. `false` keeps the "
            "sum of each channel only."
        ),
    ] = True
    charges_days: Annotated[
        int,
        Meta(
            ge=1,
            le=36_500,
            description="Days for which those rows are kept. Older ones are added up by day, "
            "route, model and outcome, so that totals still equal the ledger.",
        ),
    ] = CHARGES_DAYS

    @property
    def accounts(self) -> AccountSettings:
        """What the ledger keeps of paid requests."""
        return AccountSettings(is_kept=self.charges, kept_s=self.charges_days * DAY_S)

    def __post_init__(self) -> None:
        if ":memory:" in self.url or "mode=memory" in self.url or self.url == "sqlite://":
            raise ValueError(
                "`url` names a ledger in memory, which a restart would lose: use a file"
            )
        if not self.url.startswith(("sqlite:///", "postgresql://", "postgres://")):
            raise ValueError("`url` must begin with sqlite:/// or postgresql://")


class Settlement(Section, frozen=True):
    """Watching the chain, and settling and closing in time."""

    sweep_interval_s: Annotated[
        float,
        Meta(
            gt=0,
            le=GRACE_PERIOD_S_MIN / 10,
            description="How often every open channel is read from the chain, in addition to "
            "events. 10,000 channels cost about 20 calls.",
        ),
    ] = 15.0
    poll_interval_s: Annotated[
        float,
        Meta(
            gt=0,
            le=60,
            description="How often the chain's head is read, to notice a requested close quickly.",
        ),
    ] = 2.0
    settle_value: Annotated[
        Positive,
        Meta(description="Settle a channel once this amount is delivered and unsettled."),
    ] = 1_000_000
    settle_age_s: Annotated[
        Positive,
        Meta(description="Settle a channel once any amount has been unsettled for this long."),
    ] = 24 * 3600
    settle_units: Annotated[
        Positive | None,
        Meta(
            description="Settle a channel once this many units at the current price are unsettled."
        ),
    ] = None
    close_idle_s: Annotated[
        int,
        Meta(
            ge=0,
            description="Close a channel that has received no new voucher for this long, which "
            "refunds the rest to its payer. 0: never.",
        ),
    ] = 30 * 24 * 3600
    defend_min: Annotated[
        Positive,
        Meta(
            description="Least amount delivered and unsettled for which a payer's close request "
            "is answered with a close. Below it the payer may withdraw."
        ),
    ] = 1
    token_price_wei: Annotated[
        Positive | None,
        Meta(
            description="Approximate price of one whole token in wei of the chain's coin: a "
            "dollar at 2,500 dollars an ether is 400000000000000. If set, settles "
            "that are not urgent wait while gas is expensive. If unset, gas is not "
            "weighed."
        ),
    ] = None
    token_decimals: Annotated[
        int, Meta(ge=0, le=36, description="Decimals of the token, for `token_price_wei`.")
    ] = 6
    gas_share_max_percent: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="Share of a settle's amount that its gas may cost, unless it is urgent.",
        ),
    ] = 5
    start: Annotated[
        bool,
        Meta(
            description="Start `mpp-session settle` beside the gateway and keep it running. Set "
            "`false` if the settler runs elsewhere; the gateway then needs no key."
        ),
    ] = True
    start_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long a settler that the gateway starts may take until it settles or "
            "stands by. Raise it on a slow host.",
        ),
    ] = 300.0
    gas_budget_wei: Annotated[
        Positive,
        Meta(
            description="The most that the gas of one channel's settle or close may cost, or the "
            "amount at risk on it by `token_price_wei`, whichever is more. A quarter "
            "of it may be spent while nothing is urgent, all of it before a deadline."
        ),
    ] = 10**16
    gas_hour_max_wei: Annotated[
        Positive,
        Meta(
            description="Most that the gas of all settles and closes may cost within an hour. "
            "Beyond it they wait, except for a channel whose payer may withdraw "
            "everything within five minutes."
        ),
    ] = 5 * 10**17
    max_fee_wei: Annotated[
        Positive | None,
        Meta(description="Never bid more than this per unit of gas. Unset: the budget decides."),
    ] = None
    batch_max: Annotated[
        int, Meta(ge=1, le=400, description="Most channels in one transaction.")
    ] = 100
    close_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="How long a client's close request waits for the close to be mined before"
            " the answer says to retry.",
        ),
    ] = CLOSE_TIMEOUT_S


class Exposure(Section, frozen=True):
    """Bounds on the amounts at risk, in base units of the token."""

    channel_max: Annotated[
        Positive,
        Meta(
            description="Most that may be accepted and unsettled on one channel (`accepted - "
            "settled`). Settling begins at half of it. A higher voucher is refused "
            "with `exposure-limit`. The default is 10 of a token with six decimals."
        ),
    ] = 10_000_000
    signer_max: Annotated[
        Positive,
        Meta(
            description="The same for all channels of one signer together. A process learns with "
            "each sweep what other processes accepted."
        ),
    ] = 20_000_000
    contract_signed_max: Annotated[
        int,
        Meta(
            ge=0,
            description="Most that may be unsettled, for one signer and for one payer, by "
            "vouchers whose validity depends on a contract (ERC-1271): the contract "
            "may revoke them before they are settled. Each of `listen.workers` uses "
            "its share of it. 0: such vouchers are refused, and the error says to "
            "name an ordinary key as `authorizedSigner`; the payer may still be a "
            "contract.",
        ),
    ] = 0
    total_max: Annotated[
        Positive,
        Meta(
            description="Most that may be delivered or reserved, and unsettled, on all channels "
            "together (`spent + reserved - settled`). Settling begins at half of it. "
            "Beyond it requests are refused. With several gateway processes, each "
            "further one may exceed it by what it accepts within one "
            "`settlement.sweep_interval_s`. The default is 200 of a token with six "
            "decimals."
        ),
    ] = 200_000_000
    closes_reserved_min: Annotated[
        int,
        Meta(
            ge=0,
            description="Least number of closes for which the account must hold gas at twice the "
            "current price, if fewer channels are open. Below that, new channels are "
            "refused (`openings-paused`).",
        ),
    ] = 20


class Sponsoring(Section, frozen=True):
    """Paying the gas of payers' openings and top-ups, so that they need no ether."""

    fee_payer: Annotated[
        bool,
        Meta(
            description="Submit deposits that payers only sign, at the gas cost of the account "
            "that settles. Challenges then contain `feePayer`. The gateway does not "
            "start if it cannot keep this promise."
        ),
    ] = False
    types: Annotated[
        tuple[Literal["authorization", "permit2"], ...],
        Meta(
            description="Deposit types to offer, the preferred one first. Empty: every type that "
            "works on this chain with this token, as found at start."
        ),
    ] = ()
    deposit_min: Annotated[
        Positive, Meta(description="Least deposit to submit, in base units.")
    ] = SPONSORED_DEPOSIT_MIN
    gas_budget_wei: Annotated[
        int,
        Meta(
            ge=10**9,
            le=INT64_MAX,
            description="Most gas that is paid within an hour, for all payers together.",
        ),
    ] = 2 * 10**16
    gas_per_deposit_max: Annotated[
        Positive,
        Meta(
            description="Most gas that one deposit may use. With a key's signature it uses about "
            "150,000. A contract wallet adds its own check, and could otherwise use "
            "up the hour's gas with one deposit."
        ),
    ] = SPONSORED_GAS_MAX
    gas_price_max_wei: Annotated[Positive, Meta(description="Most to pay per unit of gas.")] = (
        50 * 10**9
    )
    deposits_per_payer: Annotated[
        Positive, Meta(description="Most deposits to pay for one payer within an hour.")
    ] = 5
    deposits_per_address: Annotated[
        Positive,
        Meta(
            description="Most deposits to pay for one client address (an IPv6 network counts as "
            "one) within an hour, for each worker."
        ),
    ] = SPONSORED_PER_SOURCE_MAX
    margin_s: Annotated[
        int,
        Meta(
            ge=30,
            le=3600,
            description="How long a signed deposit must still be valid by the chain's clock.",
        ),
    ] = AUTHORIZATION_MARGIN_S
    wait_s: Annotated[
        float,
        Meta(
            gt=0,
            le=120,
            description="How long a client waits for its deposit to be mined before the answer "
            "says to retry.",
        ),
    ] = 15.0


class Tower(Section, frozen=True):
    """A watchtower on another machine, and the settles signed ahead that it sends."""

    export_file: Annotated[
        str | None,
        Meta(
            description="The settler appends settles that it signs ahead to this file, for "
            "`mpp-session settle --watchtower` elsewhere. Unset: none are signed."
        ),
    ] = None
    uncovered_max: Annotated[
        Positive,
        Meta(
            description="Most base units that may be delivered on a channel without a settle "
            "signed ahead. Beyond it a newer one is signed."
        ),
    ] = 100_000
    uncovered_age_s: Annotated[
        Positive,
        Meta(
            description="How long a smaller amount may be uncovered before a newer settle is "
            "signed."
        ),
    ] = 300
    life_s: Annotated[
        Positive,
        Meta(
            description="How long a settle signed ahead is valid. It is renewed when half of that"
            " has passed. At least eight grace periods, so that the remainder "
            "outlives an outage and the grace period after it."
        ),
    ] = 30 * 24 * 3600
    act_percent: Annotated[
        int,
        Meta(
            ge=1,
            le=90,
            description="How much of a grace period the tower leaves to the payee's own settler "
            "before it settles instead.",
        ),
    ] = 50
