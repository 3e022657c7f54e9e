"""Where the books are kept, when they are settled, and what may be owed."""

from typing import Annotated, Literal

from msgspec import Meta

from channel.limits import (
    AUTHORIZATION_MARGIN_S,
    CHANNELS_CACHED_MAX,
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
    """Where the books are kept."""

    url: Annotated[
        str,
        Meta(
            description="`sqlite:///absolute/path.db` for one gateway process, "
            "`postgresql://...` for several. Never in memory."
        ),
    ]
    state_dir: Annotated[
        str | None,
        Meta(
            description="Directory of this machine, outside the database and its backups, in which "
            "the gateway keeps which ledger the payee has and what it has acknowledged: by that an "
            "old copy is known. In a container a volume. Unset: `mpp-session` in "
            "`$XDG_STATE_HOME`, in root's `/var/lib`, or in `~/.local/state`."
        ),
    ] = None
    channels_cached: Annotated[
        int,
        Meta(
            ge=2,
            description="Channels kept in the gateway's memory beside the disk, those used last: "
            "about 1 kB each. The voucher of one that is not costs a read.",
        ),
    ] = CHANNELS_CACHED_MAX

    def __post_init__(self) -> None:
        if ":memory:" in self.url or "mode=memory" in self.url or self.url == "sqlite://":
            raise ValueError("`url` names a ledger in memory: a restart would lose what is owed")
        if not self.url.startswith(("sqlite:///", "postgresql://", "postgres://")):
            raise ValueError("`url` must begin with sqlite:/// or postgresql://")


class Settlement(Section, frozen=True):
    """Watching the chain and closing in time."""

    sweep_interval_s: Annotated[
        float,
        Meta(
            gt=0,
            le=GRACE_PERIOD_S_MIN / 10,
            description="How often every open channel is read from the chain, whatever events "
            "said: 10,000 channels cost about 20 calls.",
        ),
    ] = 15.0
    poll_interval_s: Annotated[
        float,
        Meta(
            gt=0,
            le=60,
            description="How often the chain's head is asked for, to see a requested close soon.",
        ),
    ] = 2.0
    settle_value: Annotated[
        Positive,
        Meta(description="Settle a channel once so much of it is delivered and unsettled."),
    ] = 1_000_000
    settle_age_s: Annotated[
        Positive,
        Meta(description="Settle a channel once something of it is unsettled for so long."),
    ] = 24 * 3600
    settle_units: Annotated[
        Positive | None,
        Meta(description="Settle a channel once so many units at today's price are unsettled."),
    ] = None
    close_idle_s: Annotated[
        int,
        Meta(
            ge=0,
            description="Close a channel to which no new voucher came for so long, and give the "
            "rest back to its payer. 0: never.",
        ),
    ] = 30 * 24 * 3600
    defend_min: Annotated[
        Positive,
        Meta(
            description="Least amount delivered and unsettled for which a close that its payer "
            "asked for is answered by ours. Below it the payer may just withdraw."
        ),
    ] = 1
    token_price_wei: Annotated[
        Positive | None,
        Meta(
            description="What one whole token is worth in wei of the chain's own coin, roughly: "
            "a dollar at 2,500 dollars an ether is 400000000000000. With it, what does not "
            "press waits while gas is dear; without it gas is not weighed."
        ),
    ] = None
    token_decimals: Annotated[
        int, Meta(ge=0, le=36, description="Decimals of the token, for `token_price_wei`.")
    ] = 6
    gas_share_max_percent: Annotated[
        int,
        Meta(ge=1, le=100, description="Of what a settle brings, for its gas, unless it presses."),
    ] = 5
    start: Annotated[
        bool,
        Meta(
            description="Start `mpp-session settle` beside the gateway and keep it running. "
            "`false` where it runs elsewhere: then the gateway needs no key at all."
        ),
    ] = True
    start_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long a settler that the gateway starts may take until it settles or "
            "stands by, on a slow host.",
        ),
    ] = 300.0
    gas_budget_wei: Annotated[
        Positive,
        Meta(
            description="What the gas of one channel's settle or close may cost at most, or what "
            "is at risk on it by `token_price_wei`, whichever is more. A quarter of it while "
            "nothing presses, all of it before a deadline."
        ),
    ] = 10**16
    gas_hour_max_wei: Annotated[
        Positive,
        Meta(
            description="Most that the gas of all settles and closes may cost within an hour. "
            "Beyond it they wait, but for a channel whose payer may take everything within five "
            "minutes."
        ),
    ] = 5 * 10**17
    max_fee_wei: Annotated[
        Positive | None,
        Meta(description="Never bid more than this per unit of gas. Unset: the budget decides."),
    ] = None
    batch_max: Annotated[
        int, Meta(ge=1, le=400, description="Channels in one transaction, at most.")
    ] = 100
    close_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="How long a client's close waits to be mined before it is told to ask "
            "again.",
        ),
    ] = 30.0


class Exposure(Section, frozen=True):
    """What may be at risk, in base units of the token."""

    channel_max: Annotated[
        Positive,
        Meta(
            description="Most that may be promised and unsettled on one channel (`accepted - "
            "settled`); settling begins at half of it. A voucher beyond is refused with "
            "`exposure-limit`. The default is 10 of a token with six decimals."
        ),
    ] = 10_000_000
    signer_max: Annotated[
        Positive,
        Meta(
            description="The same for all channels of one signer together, as far as a process "
            "knows of them: what others accepted it learns with each sweep."
        ),
    ] = 20_000_000
    contract_signed_max: Annotated[
        int,
        Meta(
            ge=0,
            description="Most that may be unsettled, for one signer and for one payer, by "
            "vouchers that only a contract vouches for (ERC-1271): it may take them back before "
            "they are settled. Each of `listen.workers` takes its share of it. 0: such vouchers "
            "are refused, with the hint to name an ordinary key as `authorizedSigner`; the payer "
            "may be a contract all the same.",
        ),
    ] = 0
    total_max: Annotated[
        Positive,
        Meta(
            description="Most that may be delivered, or held for what runs, and unsettled on all "
            "channels together (`spent + reserved - settled`); settling begins at half of it. "
            "Beyond it nothing is served. With several gateway processes each further one may "
            "pass it by what it takes within one `settlement.sweep_interval_s`. The default is "
            "200 of a token with six decimals."
        ),
    ] = 200_000_000
    closes_reserved_min: Annotated[
        int,
        Meta(
            ge=0,
            description="For how many closes there must be gas at twice today's price, if fewer "
            "channels are open. Below that no new channel is taken (`openings-paused`).",
        ),
    ] = 20


class Sponsoring(Section, frozen=True):
    """Paying the gas of payers' openings and top-ups, so that they need no ether."""

    fee_payer: Annotated[
        bool,
        Meta(
            description="Submit deposits that payers only sign, at the gas of the account that "
            "settles. Challenges then say `feePayer`. What cannot be kept does not start."
        ),
    ] = False
    types: Annotated[
        tuple[Literal["authorization", "permit2"], ...],
        Meta(
            description="Ways of signing that are offered, the preferred one first. Empty: every "
            "one that works on this chain with this token, which is found out at start."
        ),
    ] = ()
    deposit_min: Annotated[
        Positive, Meta(description="Least deposit that is worth its gas, in base units.")
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
            description="Most gas that one deposit may take. A key's takes about 150,000; a "
            "contract wallet adds its own check, and could otherwise take the hour's gas at once."
        ),
    ] = SPONSORED_GAS_MAX
    gas_price_max_wei: Annotated[
        Positive, Meta(description="Most that is paid for a unit of gas.")
    ] = 50 * 10**9
    deposits_per_payer: Annotated[
        Positive, Meta(description="Deposits within an hour that are paid for one payer.")
    ] = 5
    deposits_per_address: Annotated[
        Positive,
        Meta(
            description="Deposits within an hour that are paid for one client address (an IPv6 "
            "network counts as one), for each worker."
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
            description="How long a client waits for its deposit to be mined before it is told "
            "to ask again.",
        ),
    ] = 15.0


class Tower(Section, frozen=True):
    """Defence from another machine: settles signed ahead, and the watchtower that sends them."""

    export_file: Annotated[
        str | None,
        Meta(
            description="The settler appends settles that it has signed ahead to this file, for "
            "`mpp-session settle --watchtower` elsewhere. Unset: none are signed."
        ),
    ] = None
    uncovered_max: Annotated[
        Positive,
        Meta(
            description="Most that may be delivered on a channel, in base units, without a settle "
            "signed ahead for it; a newer one is signed beyond."
        ),
    ] = 100_000
    uncovered_age_s: Annotated[
        Positive,
        Meta(description="How long less than that may go without, too."),
    ] = 300
    life_s: Annotated[
        Positive,
        Meta(
            description="How long a settle signed ahead is good; renewed when half of it is gone. "
            "At least eight grace periods: what is left of it must outlive an outage and the "
            "grace period after it."
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
