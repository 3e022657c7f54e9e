"""Whose voucher is it? A key's signature first, then a wallet's, as the escrow does (ENC-07)."""

from channel.chain import ChainReader
from channel.engine.facts import ChainFacts
from channel.engine.rate_limit import RateLimiter
from channel.engine.verifying import VoucherVerifier
from channel.errors import InvalidSignatureError, SignerMismatchError
from channel.types import Address, ChannelKey, SignedVoucher, VerifiedVoucher
from channel.verify.typed_data import voucher_digest
from channel.verify.voucher import verify_wallet_voucher

__all__ = ["SignatureCheck"]


class SignatureCheck:
    """The one way from a payload's voucher to a proven one, for every action (F-14)."""

    def __init__(
        self,
        *,
        chain: ChainReader,
        facts: ChainFacts,
        asking: RateLimiter,
        verifier: VoucherVerifier,
    ) -> None:
        self._verifier = verifier
        self._chain = chain
        self._facts = facts
        self._asking = asking
        self.checked = 0
        """How many signatures were checked since the start."""

    async def require(
        self, voucher: SignedVoucher, key: ChannelKey, signer: Address, *, client: bytes = b""
    ) -> VerifiedVoucher:
        """Return the voucher as proven by `signer`, key or contract wallet.

        A key's signature costs tens of microseconds and is checked at once. Only one that no
        key of `signer` made asks the chain, so often per channel and second, whoever sends it,
        and so many at once for a `client`.

        Raises:
            InvalidSignatureError: Not canonical, unrecoverable, or the wallet says no.
            SignerMismatchError: Somebody else signed it.
            TooManyRequestsError: Too many signatures of this channel ask the chain.
            ChainUnavailableError: No node could say; fails closed (F-15).
        """
        self.checked += 1
        try:
            return await self._verifier.verify(voucher, key, signer)
        except (InvalidSignatureError, SignerMismatchError) as not_a_key:
            self._asking.require(key.channel_id)
            async with self._facts.bounded_check(client):
                is_valid = await self._chain.is_valid_wallet_signature(
                    signer, voucher_digest(key, voucher.cumulative_amount), voucher.signature
                )
            if not is_valid:
                raise not_a_key from None
            return verify_wallet_voucher(voucher, key, is_valid=True)
