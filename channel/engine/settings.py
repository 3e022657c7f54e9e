"""What an engine is told about the provider it works for, and the bounds it keeps."""

import os

import msgspec

from channel.errors import ConfigError
from channel.limits import (
    CHAIN_CHECKS_PER_SOURCE_MAX,
    CHALLENGE_LIFETIME_S,
    CLOSE_WAIT_S_MAX,
    FACT_AGE_S_MAX,
    FACT_TTL_S,
    GRACE_PERIOD_S_MIN,
    RESERVATION_LEASE_S,
    RESERVATION_STEP_UNITS,
    SPONSORED_DEPOSIT_MIN,
    SPONSORED_PER_SOURCE_MAX,
    TRANSACTION_WAIT_S_MAX,
    VERIFYING_THREADS_MAX,
    VOUCHERS_PER_SECOND_MAX,
)
from channel.types import Address

__all__ = ["EngineSettings", "SponsorTerms", "verifying_threads"]


def verifying_threads(processes: int = 1) -> int:
    """Return how many threads each of so many processes on this machine should verify with."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(VERIFYING_THREADS_MAX, (cores or 1) // processes))


class SponsorTerms(msgspec.Struct, frozen=True, kw_only=True):
    """On which terms gas is paid for payers' deposits (CHAL-04)."""

    credential_types: tuple[str, ...]
    """What challenges list, in order of preference; `hash` among them."""
    token_domain: bytes
    """The token's EIP-712 domain separator, as the token itself says it (F-21)."""
    deposit_min: int = SPONSORED_DEPOSIT_MIN
    """Least deposit, in base units (OPEN-12)."""
    per_source_max: int = SPONSORED_PER_SOURCE_MAX
    """Deposits an hour for each client address."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Who is paid, in what, and how careful the engine is."""

    realm: str
    """Configuration only, never taken from a request's Host (F-10)."""
    payee: Address
    token: Address
    confirmations: int = 1
    """Blocks on a deposit before it counts, its own included (OPEN-12)."""
    challenge_lifetime_s: int = CHALLENGE_LIFETIME_S
    credential_header: str | None = None
    """`Payment-Authorization` where credentials travel in that field, to leave `Authorization` to
    the application; there is no other one (CHAL-12)."""
    vouchers_per_second: int = VOUCHERS_PER_SECOND_MAX
    """Per channel, valid ones (VCH-09)."""
    reservation_step_units: int = RESERVATION_STEP_UNITS
    """Most units a stream holds ahead, and so loses when its owner dies."""
    reservation_lease_s: int = RESERVATION_LEASE_S
    chain_checks_per_address: int = CHAIN_CHECKS_PER_SOURCE_MAX
    """Checks that ask a node, at a time, for one client address (F-98). More where many clients
    have one address: behind a proxy that hides them."""
    fact_ttl_s: float = FACT_TTL_S
    """Age of a chain fact beyond which a voucher starts a new read, without waiting for it."""
    fact_age_s_max: float = FACT_AGE_S_MAX
    """Age of a chain fact beyond which a voucher waits for the new read (VCH-10)."""
    transaction_wait_s: float = TRANSACTION_WAIT_S_MAX
    close_wait_s: float = CLOSE_WAIT_S_MAX
    verifying_threads: int = msgspec.field(default_factory=verifying_threads)
    """Threads that verify vouchers when many come at once, the event loop's own included."""
    takes_contract_signatures: bool = False
    """Take vouchers that only their signer's contract vouches for (ERC-1271). It may change its
    mind before they are settled, so `Admission` must bound them (F-19)."""
    sponsor: SponsorTerms | None = None
    """None: payers submit their deposits themselves."""

    def __post_init__(self) -> None:
        """Refuse what would lose money later (decision 15).

        Raises:
            ConfigError: A bound is out of range; the message names it.
        """
        if not self.realm or "|" in self.realm:
            raise ConfigError("the realm must be given and hold no | (CHAL-09)")
        if self.confirmations < 1:
            raise ConfigError("a deposit needs at least one confirmation")
        if not 0 <= self.fact_ttl_s <= max(self.fact_age_s_max, 0) or (
            self.fact_age_s_max > GRACE_PERIOD_S_MIN / 10
        ):
            raise ConfigError("chain facts must be read again well inside the grace period")
        if self.reservation_step_units < 1 or self.vouchers_per_second < 1:
            raise ConfigError("a reservation step and the voucher rate must be at least 1")
        if self.verifying_threads < 1:
            raise ConfigError("at least one thread must verify vouchers")
        if self.reservation_lease_s < 1 or self.challenge_lifetime_s < 1:
            raise ConfigError("leases and challenges must live at least one second")
