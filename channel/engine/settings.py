"""The settings of an engine: the provider it works for, and its bounds."""

import os

import msgspec

from channel.errors import ConfigError
from channel.limits import (
    CHAIN_CHECKS_PER_SOURCE_MAX,
    CHALLENGE_LIFETIME_S,
    CLOSE_TIMEOUT_S,
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
from channel.methods.interface import SessionMethod
from channel.methods.registry import DEFAULT
from channel.types import Address

__all__ = ["EngineSettings", "SponsorTerms", "verifying_threads"]


def verifying_threads(processes: int = 1) -> int:
    """Return the number of verifying threads for each of `processes` on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(VERIFYING_THREADS_MAX, (cores or 1) // processes))


class SponsorTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The terms on which the payee pays the gas for payers' deposits (CHAL-04)."""

    credential_types: tuple[str, ...]
    """The credential types of a challenge, in order of preference, including `hash`."""
    token_domain: bytes
    """The token's EIP-712 domain separator, as read from the token (F-21)."""
    deposit_min: int = SPONSORED_DEPOSIT_MIN
    """Least deposit, in base units (OPEN-12)."""
    per_source_max: int = SPONSORED_PER_SOURCE_MAX
    """Deposits an hour for each client address."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The payee, the token, and the engine's bounds."""

    realm: str
    """From the configuration only, never from a request's Host (F-10)."""
    payee: Address
    token: Address
    method: SessionMethod = DEFAULT
    confirmations: int = 1
    """Blocks on a deposit before it counts, its own included (OPEN-12)."""
    challenge_lifetime_s: int = CHALLENGE_LIFETIME_S
    credential_header: str | None = None
    """`Payment-Authorization` if credentials use that field, which leaves `Authorization` to the
    application; the protocol defines no other one (CHAL-12)."""
    vouchers_per_second: int = VOUCHERS_PER_SECOND_MAX
    """Valid vouchers per channel (VCH-09)."""
    reservation_step_units: int = RESERVATION_STEP_UNITS
    """The most units a stream reserves in advance, and so loses when its owner dies."""
    reservation_lease_s: int = RESERVATION_LEASE_S
    chain_checks_per_address: int = CHAIN_CHECKS_PER_SOURCE_MAX
    """Concurrent checks that ask a node, per client address (F-98). Raise it where many clients
    share one address, for example behind a proxy that hides them."""
    fact_ttl_s: float = FACT_TTL_S
    """Age of a chain fact beyond which a voucher starts a new read, without waiting for it."""
    fact_age_s_max: float = FACT_AGE_S_MAX
    """Age of a chain fact beyond which a voucher waits for the new read (VCH-10)."""
    transaction_wait_s: float = TRANSACTION_WAIT_S_MAX
    close_wait_s: float = CLOSE_WAIT_S_MAX
    """Seconds a close waits for running requests before it ends them."""
    close_timeout_s: float = CLOSE_TIMEOUT_S
    """Seconds a close waits for the settler before the answer says to repeat it (decision 14)."""
    verifying_threads: int = msgspec.field(default_factory=verifying_threads)
    """Threads that verify concurrent vouchers, including the event loop's own."""
    takes_contract_signatures: bool = False
    """Accept vouchers that only the signer's contract verifies (ERC-1271). The contract may change
    its answer before they are settled, so `Admission` must bound them (F-19)."""
    sponsor: SponsorTerms | None = None
    """None: payers submit their deposits themselves."""

    def __post_init__(self) -> None:
        """Refuse settings that would lose money later (decision 15: never start with them).

        Raises:
            ConfigError: A value is out of range; the message names it.
        """
        if not self.realm or "|" in self.realm:
            raise ConfigError(f"expected a realm without | (CHAL-09), found {self.realm!r}")
        if self.confirmations < 1:
            raise ConfigError(f"expected at least 1 confirmation, found {self.confirmations}")
        if not 0 <= self.fact_ttl_s <= max(self.fact_age_s_max, 0) or (
            self.fact_age_s_max > GRACE_PERIOD_S_MIN / 10
        ):
            raise ConfigError(
                "expected fact_ttl_s from 0 to fact_age_s_max, and fact_age_s_max up to "
                f"{GRACE_PERIOD_S_MIN / 10:.0f} (a tenth of the grace period), found "
                f"{self.fact_ttl_s} and {self.fact_age_s_max}"
            )
        if self.reservation_step_units < 1 or self.vouchers_per_second < 1:
            raise ConfigError("a reservation step and the voucher rate must be at least 1")
        if self.verifying_threads < 1:
            raise ConfigError(
                f"expected at least 1 thread to verify vouchers, found {self.verifying_threads}"
            )
        if self.reservation_lease_s < 1 or self.challenge_lifetime_s < 1:
            raise ConfigError("leases and challenges must last at least 1 second")
