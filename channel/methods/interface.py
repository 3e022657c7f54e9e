"""What a payment method is to the engine: all that differs between two kinds of session.

    codec       the request's `methodDetails`, and the payloads that open and top up a channel
    identity    the channel id that follows from the terms
    signing     the EIP-712 domain of the vouchers
    funding     from a payload to a plan: who deposits what, and by which transaction
    escrow      which functions of the contract are called

Everything else is the same in every method: challenges and their HMAC, the voucher's type, states
and rules, the ledger, receipts, events of a stream, and how a channel is settled and closed.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import msgspec

from channel.chain import EscrowInterface, SponsoredDeposit
from channel.errors import MalformedPayloadError
from channel.limits import REQUEST_PARAM_BYTES_MAX
from channel.types import (
    Address,
    ChannelKey,
    ChannelTerms,
    Redacted,
    SignedVoucher,
    TxHash,
    VerifiedVoucher,
)
from channel.verify.typed_data import derive_channel_id, voucher_digest
from channel.verify.voucher import verify_voucher
from channel.wire.challenge import (
    SessionRequest,
    parse_session_request_object,
    session_request_object,
)
from channel.wire.credential import Credential, parse_credential
from channel.wire.encoding import (
    canonical_json,
    decode_base64url,
    encode_base64url,
    parse_json_object,
)
from channel.wire.payload import OpenPayload, Payload, TopUpPayload, VoucherPayload

__all__ = [
    "OpeningPlan",
    "PayerTransaction",
    "SessionMethod",
    "TopUpPlan",
    "require_terms",
]


class PayerTransaction(Redacted, frozen=True):
    """A deposit by the payer's own transaction."""

    tx_hash: TxHash
    raw: bytes = b""
    """The signed transaction, if the server is to send it; empty if the payer has sent it."""

    def _show(self, name: str) -> str:
        return "<withheld>" if name == "raw" else super()._show(name)


class OpeningPlan(msgspec.Struct, frozen=True):
    """What a payload that opens a channel asks for, checked as far as it goes without the chain."""

    terms: ChannelTerms
    deposit: PayerTransaction | SponsoredDeposit


class TopUpPlan(msgspec.Struct, frozen=True):
    """What a payload that tops up a channel asks for, checked like an opening."""

    amount: int
    """In base units."""
    deposit: PayerTransaction | SponsoredDeposit


class SessionMethod(ABC):
    """One payment method. It has no state: one object serves every engine."""

    name: ClassVar[str]
    """As challenges, credentials and receipts state it."""
    escrow: ClassVar[EscrowInterface]
    credential_types: ClassVar[tuple[str, ...]]
    """The kinds of funding for which the payer pays the gas."""

    def format_request(self, request: SessionRequest) -> str:
        """Return the `request` parameter of a challenge: base64url of the canonical JSON.

        Raises:
            ConfigError: The price is not positive (CHAL-02).
            WireError: The wire cannot carry one of the values.
        """
        return encode_base64url(canonical_json(self.request_object(request)))

    def request_object(self, request: SessionRequest) -> dict[str, Any]:
        """Return the request with its wire names; see `format_request`."""
        return session_request_object(request, self.format_details(request))

    def parse_request(self, request: str) -> SessionRequest:
        """Return the decoded `request` parameter of a challenge.

        Cached: a server decodes the same few strings for every voucher, after it checked their
        HMAC.

        Raises:
            WireError: Not base64url of such an object, or larger than the bound.
        """
        return _parse_request(self, request)

    def parse_request_object(self, wire: Mapping[str, Any]) -> SessionRequest:
        """Return the decoded request object, or raise `WireError` naming the field."""
        return parse_session_request_object(wire, self.parse_details)

    @abstractmethod
    def format_details(self, request: SessionRequest) -> dict[str, Any]:
        """Return the members of `methodDetails` that only this method has."""

    @abstractmethod
    def parse_details(self, wire: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a `SessionRequest` that the method itself reads.

        `wire` is `methodDetails`. The fields are `chain_id`, `credential_types`, and those that
        only this method has.

        Raises:
            WireError: A member is missing or malformed; the message names it.
        """

    @abstractmethod
    def parse_payload(self, wire: Mapping[str, Any]) -> Payload:
        """Return the parsed payload of a credential.

        Raises:
            MalformedPayloadError: Unknown action or type, or a field missing or malformed.
        """

    def parse_credential(self, header_value: str) -> Credential:
        """Return the meaning of a credential; see `channel.wire.credential.parse_credential`."""
        return parse_credential(header_value, self.parse_payload)

    def voucher_digest(self, key: ChannelKey, cumulative_amount: int) -> bytes:
        """Return the digest that a voucher's signer signs, under the domain of `escrow`."""
        return voucher_digest(key, cumulative_amount, self.escrow.domain)

    def verify_voucher(
        self, voucher: SignedVoucher, key: ChannelKey, signer: Address
    ) -> VerifiedVoucher:
        """Return the voucher as verified; see `channel.verify.voucher.verify_voucher`."""
        return verify_voucher(voucher, key, signer, self.escrow.domain)

    @abstractmethod
    def plan_opening(
        self,
        payload: OpenPayload,
        *,
        key: ChannelKey,
        asked: SessionRequest,
        source: Address | None,
    ) -> OpeningPlan:
        """Return what an opening asks for. Pure: it asks no chain.

        `source` is the payer that the credential states, if it states one.

        Raises:
            MalformedPayloadError: A field contradicts the terms, the offer or the escrow, or the
                channel id does not follow from the terms (OPEN-01).
        """

    @abstractmethod
    def plan_top_up(
        self, payload: TopUpPayload, *, key: ChannelKey, asked: SessionRequest
    ) -> TopUpPlan:
        """Return what a top-up asks for. Pure, like `plan_opening`, and raises the same."""

    def split_merged(self, payload: VoucherPayload) -> OpenPayload | TopUpPayload:
        """Return a voucher's deposit as the separate payload that it stands for (VCH-06).

        Raises:
            MalformedPayloadError: The method attaches no deposits to vouchers.
        """
        del payload
        raise MalformedPayloadError(f"payload.deposit: not defined for method {self.name}.")

    def require_key_signature(
        self, deposit: SponsoredDeposit, token: bytes, terms: ChannelTerms
    ) -> None:
        """Check that the funder's key signed a deposit that a plan contains.

        `token` is the token's domain separator. Only for a method whose plans have such deposits.

        Raises:
            InvalidSignatureError: Not canonical, or no key could have made it.
            SignerMismatchError: Another key made it; it may be a contract wallet's signature.
        """
        del deposit, token, terms
        raise NotImplementedError


@lru_cache(maxsize=256)
def _parse_request(method: SessionMethod, request: str) -> SessionRequest:
    return method.parse_request_object(
        parse_json_object(decode_base64url(request), bytes_max=REQUEST_PARAM_BYTES_MAX)
    )


def require_terms(
    payload: OpenPayload,
    key: ChannelKey,
    asked: SessionRequest,
    *,
    payer: Address,
    authorized_signer: Address,
    salt: bytes,
) -> ChannelTerms:
    """Return the terms that an opening claims, if its channel id follows from them (OPEN-01).

    Raises:
        MalformedPayloadError: It is the id of another channel.
    """
    terms = ChannelTerms(
        payer=payer,
        payee=asked.recipient,
        token=asked.currency,
        authorized_signer=authorized_signer,
    )
    derived = derive_channel_id(terms, salt=salt, escrow=key.escrow, chain_id=key.chain_id)
    if derived != payload.channel_id:
        raise MalformedPayloadError("payload.channelId: not the id of a channel with these terms.")
    return terms
