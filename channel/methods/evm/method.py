"""The method's object: request details, payloads, and plans of deposits."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from channel.chain import EscrowInterface, SponsoredDeposit
from channel.errors import MalformedPayloadError
from channel.methods.evm import payload as payloads
from channel.methods.evm import sponsoring
from channel.methods.evm.payload import (
    OpenAuthorization,
    OpenHash,
    OpenPermit2,
    TopUpAuthorization,
    TopUpHash,
    TopUpPermit2,
)
from channel.methods.interface import (
    OpeningPlan,
    PayerTransaction,
    SessionMethod,
    TopUpPlan,
    require_terms,
)
from channel.types import Address, ChannelKey, ChannelTerms
from channel.wire.challenge import SessionRequest
from channel.wire.encoding import format_checksum_address, parse_address, parse_safe_integer
from channel.wire.fields import optional, parse_names, required
from channel.wire.funding import Deposit
from channel.wire.payload import OpenPayload, Payload, TopUpPayload, VoucherPayload

__all__ = ["EVM", "EvmMethod"]


class EvmMethod(SessionMethod):
    """Method `evm`: the payer opens the channel itself, or signs a deposit that the payee sends."""

    name: ClassVar[str] = "evm"
    escrow: ClassVar[EscrowInterface] = EscrowInterface()
    credential_types: ClassVar[tuple[str, ...]] = ("hash",)

    def format_details(self, request: SessionRequest) -> dict[str, Any]:
        """See `SessionMethod.format_details`."""
        details: dict[str, Any] = {}
        if request.credential_types != self.credential_types:
            details["credentialTypes"] = list(request.credential_types)
        if request.permit2 is not None:
            details["permit2Contract"] = format_checksum_address(request.permit2)
        return details

    def parse_details(self, wire: Mapping[str, Any]) -> dict[str, Any]:
        """See `SessionMethod.parse_details`."""
        types = optional(wire, "credentialTypes", parse_names)
        return {
            "chain_id": required(wire, "chainId", parse_safe_integer),
            "credential_types": types or self.credential_types,
            "permit2": optional(wire, "permit2Contract", parse_address),
        }

    def parse_payload(self, wire: Mapping[str, Any]) -> Payload:
        """See `SessionMethod.parse_payload`."""
        return payloads.parse_payload(wire)

    def plan_opening(
        self,
        payload: OpenPayload,
        *,
        key: ChannelKey,
        asked: SessionRequest,
        source: Address | None,
    ) -> OpeningPlan:
        """See `SessionMethod.plan_opening`.

        The payer is the source for `hash`, and the funder of the deposit for every other type.
        """
        match payload:
            case OpenHash():
                if source is None:
                    raise MalformedPayloadError("source: missing")
                payer = source
            case OpenAuthorization() | OpenPermit2():
                payer = payload.authorization.funder
            case _:
                raise _foreign(payload)
        terms = require_terms(
            payload,
            key,
            asked,
            payer=payer,
            authorized_signer=payload.authorized_signer,
            salt=payload.salt,
        )
        if isinstance(payload, OpenHash):
            return OpeningPlan(terms, PayerTransaction(payload.tx_hash))
        return OpeningPlan(terms, sponsoring.build_opening_deposit(key, payload, terms))

    def plan_top_up(
        self, payload: TopUpPayload, *, key: ChannelKey, asked: SessionRequest
    ) -> TopUpPlan:
        """See `SessionMethod.plan_top_up`."""
        match payload:
            case TopUpHash():
                return TopUpPlan(payload.additional_deposit, PayerTransaction(payload.tx_hash))
            case TopUpAuthorization() | TopUpPermit2():
                deposit = sponsoring.build_top_up_deposit(key, payload, asked.currency)
                return TopUpPlan(deposit.amount, deposit)
            case _:
                raise _foreign(payload)

    def split_merged(self, payload: VoucherPayload) -> OpenPayload | TopUpPayload:
        """See `SessionMethod.split_merged`."""
        deposit = payload.deposit
        if not isinstance(deposit, Deposit):
            raise MalformedPayloadError("payload.deposit: missing")
        return sponsoring.split_merged(payload, deposit)

    def require_key_signature(
        self, deposit: SponsoredDeposit, token: bytes, terms: ChannelTerms
    ) -> None:
        """See `SessionMethod.require_key_signature`."""
        sponsoring.require_key_signature(deposit, token, terms)


EVM: Final = EvmMethod()


def _foreign(payload: OpenPayload | TopUpPayload) -> MalformedPayloadError:
    return MalformedPayloadError(f"payload.type: {payload.type} is another method's.")
