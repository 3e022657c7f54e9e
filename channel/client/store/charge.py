"""One payment for one request, as its payer remembers it (`evm` charge and x402)."""

from typing import Literal

from channel.types import Address, Redacted

__all__ = ["ChargeRecord", "ChargeState"]

ChargeState = Literal["planned", "sent", "done", "over"]


class ChargeRecord(Redacted, frozen=True, kw_only=True):
    """An EIP-3009 authorization for one request; durable before its signature is sent."""

    chain_id: int
    token: Address
    payer: Address
    nonce: bytes
    """Of the authorization. The token uses it once, so no repetition pays twice."""
    purchase: bytes
    """Digest of the request that it pays for: an equal request sends the same credential."""
    origin: str
    """Scheme, host and port of the only server that gets it."""
    url: str
    """Without the query, which may hold secrets."""
    way: Literal["charge", "x402"]
    payee: Address
    amount: int
    """In base units."""
    signed_at: int
    """Unix seconds of this machine's clock."""
    valid_before: int
    """Unix seconds of the chain's clock: later it cannot be settled."""
    idempotency_key: str
    """Goes with every repetition."""
    is_key_given: bool
    """Whether the caller chose the key; then its request is never paid again."""
    header: str
    """The header field that carries the credential."""
    credential: str = ""
    """As sent; empty while `planned`."""
    state: ChargeState = "planned"
    """`planned`, nothing has left; `sent`; `done`, the request was served; `over`, it was not, and
    this can no longer be settled."""
    reference: str = ""
    """What the server named as the payment, such as a transaction's hash."""

    @property
    def is_open(self) -> bool:
        """Whether an equal request sends this credential again rather than paying anew."""
        return self.state == "sent" or (self.state == "done" and self.is_key_given)
