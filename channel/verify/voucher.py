"""The only way from `SignedVoucher` to `VerifiedVoucher` (F-14).

The escrow checks a signature as a key's first and as a wallet's (ERC-1271) second. The engine does
the same: it asks the chain for the second where the operator accepts such vouchers (ENC-07):

    try:
        verified = verify_voucher(voucher, key, signer, domain)
    except (InvalidSignatureError, SignerMismatchError):
        if the operator does not accept such vouchers, or the signer has no code: raise
        answer = await chain.is_valid_wallet_signature(signer, voucher_digest(...), signature)
        verified = verify_wallet_voucher(voucher, key, is_valid=answer)
"""

from channel.errors import InvalidSignatureError, SignerMismatchError
from channel.types import ZERO_ADDRESS, Address, ChannelKey, SignedVoucher, VerifiedVoucher
from channel.verify.signature import recover
from channel.verify.typed_data import voucher_digest

__all__ = ["verify_voucher", "verify_wallet_voucher"]


def verify_voucher(
    voucher: SignedVoucher, key: ChannelKey, signer: Address, domain: str
) -> VerifiedVoucher:
    """Return the voucher as verified: signed by `signer` for this channel, escrow and chain.

    `domain` is the name of the escrow's EIP-712 domain: see `voucher_digest`. `signer` comes from
    the channel on the chain, never from the credential (VCH-02).

    Raises:
        InvalidSignatureError: Not canonical or unrecoverable (AMB-15).
        SignerMismatchError: A valid signature by another signer, or over another voucher.
    """
    if voucher.channel_id != key.channel_id:
        raise SignerMismatchError("The voucher is for another channel.")
    recovered = recover(voucher_digest(key, voucher.cumulative_amount, domain), voucher.signature)
    if recovered != signer or signer == ZERO_ADDRESS:
        raise SignerMismatchError("The voucher's signer may not sign for this channel.")
    return VerifiedVoucher(key, voucher.cumulative_amount, voucher.signature)


def verify_wallet_voucher(
    voucher: SignedVoucher, key: ChannelKey, *, is_valid: bool
) -> VerifiedVoucher:
    """Return the voucher as verified by its signer's contract; its ERC-1271 answer is `is_valid`.

    Raises:
        InvalidSignatureError: The wallet rejected the signature (AMB-15).
        SignerMismatchError: The voucher is for another channel than `key`.
    """
    if voucher.channel_id != key.channel_id:
        raise SignerMismatchError("The voucher is for another channel.")
    if not is_valid:
        raise InvalidSignatureError("The signing wallet does not accept this signature.")
    return VerifiedVoucher(key, voucher.cumulative_amount, voucher.signature, by_contract=True)
