"""Verifies vouchers: a key's signature first, then a wallet's, as the escrow does (ENC-07).

A contract may take back its answer (F-19), so contract signatures are accepted only where the
operator allows them. Questions to a node about them are bounded, and signers without code are
remembered (O-25).
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from channel.chain import ChainReader
from channel.engine.facts import ChainFacts
from channel.engine.rate_limit import RateLimiter
from channel.engine.settings import EngineSettings
from channel.engine.verify_pool import VerifyPool
from channel.errors import InvalidSignatureError, SignerMismatchError
from channel.limits import (
    CODELESS_SIGNERS_MAX,
    CODELESS_TRUSTED_S,
    CONTRACT_QUESTIONS_MAX,
    CONTRACT_QUESTIONS_PER_SOURCE_MAX,
)
from channel.types import Address, ChannelKey, SignedVoucher, VerifiedVoucher
from channel.verify.typed_data import voucher_digest
from channel.verify.voucher import verify_wallet_voucher

__all__ = ["VoucherVerifier"]

_HINT: Final = (
    "This server does not accept vouchers that only a contract verifies: name an ordinary key (an "
    "externally owned account) as the channel's `authorizedSigner` and sign with it; the payer "
    "itself may be a contract."
)
_ALL: Final = b"all"


class VoucherVerifier:
    """The only way from a payload's voucher to a verified one, for every action (F-14)."""

    def __init__(
        self,
        *,
        chain: ChainReader,
        facts: ChainFacts,
        settings: EngineSettings,
        pool: VerifyPool,
        now: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._chain = chain
        self._facts = facts
        self._takes_contracts = settings.takes_contract_signatures
        self._domain = settings.method.escrow.domain
        self._now = now
        self._of_channel = RateLimiter(settings.vouchers_per_second, now)
        questions = "signatures a second that only a contract can verify"
        self._of_source = RateLimiter(CONTRACT_QUESTIONS_PER_SOURCE_MAX, now, what=questions)
        self._of_all = RateLimiter(CONTRACT_QUESTIONS_MAX, now, what=questions)
        self._codeless: OrderedDict[Address, float] = OrderedDict()
        self.checked = 0
        """How many signatures were checked since the start."""

    async def verify(
        self, voucher: SignedVoucher, key: ChannelKey, signer: Address, *, client: bytes = b""
    ) -> VerifiedVoucher:
        """Return the voucher, verified against `signer`: a key, or a contract if allowed.

        A key's signature costs tens of microseconds and is checked immediately. Only a signature
        that no key of `signer` made asks the chain, unless `signer` is known to have no code. The
        questions are bounded per channel, per `client` and in total.

        Raises:
            InvalidSignatureError: Not canonical, unrecoverable, or rejected by the wallet.
            SignerMismatchError: Another key signed it.
            TooManyRequestsError: Too many signatures ask the chain.
            ChainUnavailableError: No node answered; fails closed (F-15).
        """
        self.checked += 1
        try:
            return await self._pool.verify(voucher, key, signer)
        except (InvalidSignatureError, SignerMismatchError) as not_a_key:
            if not self._takes_contracts:
                raise type(not_a_key)(f"{not_a_key} {_HINT}") from None
            if not await self._is_vouched_for(voucher, key, signer, client):
                raise not_a_key from None
            return verify_wallet_voucher(voucher, key, is_valid=True)

    async def _is_vouched_for(
        self, voucher: SignedVoucher, key: ChannelKey, signer: Address, client: bytes
    ) -> bool:
        """Ask the signer's contract, if it has one."""
        if self._now() < self._codeless.get(signer, float("-inf")):
            return False
        self._of_channel.require(key.channel_id)
        if client:
            self._of_source.require(client)
        self._of_all.require(_ALL)
        async with self._facts.bounded_check(client):
            if not await self._chain.has_code(signer):
                self._note_codeless(signer)
                return False
            digest = voucher_digest(key, voucher.cumulative_amount, self._domain)
            return await self._chain.is_valid_wallet_signature(signer, digest, voucher.signature)

    def _note_codeless(self, signer: Address) -> None:
        """Remember for a while that a signer has no code; it may be deployed later."""
        self._codeless.pop(signer, None)
        self._codeless[signer] = self._now() + CODELESS_TRUSTED_S
        if len(self._codeless) > CODELESS_SIGNERS_MAX:
            self._codeless.popitem(last=False)
