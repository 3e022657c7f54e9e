"""The method's object: request details, payloads, and plans of deposits."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from channel.chain import EscrowInterface
from channel.errors import MalformedPayloadError, WireError
from channel.methods.interface import (
    OpeningPlan,
    PayerTransaction,
    SessionMethod,
    TopUpPlan,
    require_terms,
)
from channel.methods.tempo.payload import (
    TRANSACTION,
    OpenTransaction,
    TopUpTransaction,
    parse_payload,
)
from channel.methods.tempo.transaction import read_calls
from channel.types import Address, ChannelKey, TxHash
from channel.verify.typed_data import keccak
from channel.wire.challenge import SessionRequest
from channel.wire.encoding import parse_safe_integer
from channel.wire.fields import optional, parse_name
from channel.wire.payload import OpenPayload, Payload, TopUpPayload

__all__ = ["TEMPO", "TempoMethod"]

_MAINNET: Final = 4217
"""The chain of a request that names none."""
_PROTOCOL: Final = "v1"
_TOP_UP: Final = "topUp(bytes32,uint256)"
_WORD: Final = 32
_SELECTOR: Final = 4


class TempoMethod(SessionMethod):
    """Method `tempo`, version 1: the payer signs its transactions and the server sends them.

    The payer pays the fees. The server takes signatures of keys only, as the escrow does.
    """

    name: ClassVar[str] = "tempo"
    escrow: ClassVar[EscrowInterface] = EscrowInterface(
        domain="Tempo Stream Channel",
        read_many="getChannelsBatch(bytes32[])",
        top_up=_TOP_UP,
        has_extensions=False,
    )
    credential_types: ClassVar[tuple[str, ...]] = (TRANSACTION,)

    def format_details(self, request: SessionRequest) -> dict[str, Any]:
        """See `SessionMethod.format_details`; a request without a version is of version 1."""
        del request
        return {}

    def parse_details(self, wire: Mapping[str, Any]) -> dict[str, Any]:
        """See `SessionMethod.parse_details`."""
        if optional(wire, "sessionProtocol", parse_name) not in (None, _PROTOCOL):
            raise WireError(f"sessionProtocol: not {_PROTOCOL}")
        return {
            "chain_id": optional(wire, "chainId", parse_safe_integer) or _MAINNET,
            "credential_types": self.credential_types,
        }

    def parse_payload(self, wire: Mapping[str, Any]) -> Payload:
        """See `SessionMethod.parse_payload`."""
        return parse_payload(wire)

    def plan_opening(
        self,
        payload: OpenPayload,
        *,
        key: ChannelKey,
        asked: SessionRequest,
        source: Address | None,
    ) -> OpeningPlan:
        """See `SessionMethod.plan_opening`. The payer is the source.

        The channel id binds it, and the escrow gives that id only to the sender of the opening.
        """
        if not isinstance(payload, OpenTransaction):
            raise _foreign(payload)
        if source is None:
            raise MalformedPayloadError("source: missing")
        payee, token, _, salt, signer = _find_call(payload.transaction, _OPEN, key, words=5)
        if _address(payee) != asked.recipient:
            raise _wrong("the payee is not the recipient")
        if _address(token) != asked.currency:
            raise _wrong("the token is not the currency")
        if payload.authorized_signer not in (None, _address(signer)):
            raise MalformedPayloadError("payload.authorizedSigner: not the transaction's.")
        terms = require_terms(
            payload,
            key,
            asked,
            payer=source,
            authorized_signer=_address(signer),
            salt=salt,
        )
        return OpeningPlan(terms, _by_payer(payload.transaction))

    def plan_top_up(
        self, payload: TopUpPayload, *, key: ChannelKey, asked: SessionRequest
    ) -> TopUpPlan:
        """See `SessionMethod.plan_top_up`."""
        del asked
        if not isinstance(payload, TopUpTransaction):
            raise _foreign(payload)
        channel_id, amount = _find_call(payload.transaction, _ADD, key, words=2)
        if channel_id != payload.channel_id:
            raise _wrong("it tops up another channel")
        if int.from_bytes(amount, "big") != payload.additional_deposit:
            raise _wrong("the amount is not additionalDeposit")
        return TopUpPlan(payload.additional_deposit, _by_payer(payload.transaction))


TEMPO: Final = TempoMethod()


def _selector(signature: str) -> bytes:
    return keccak(signature.encode("ascii"))[:_SELECTOR]


_OPEN: Final = _selector("open(address,address,uint128,bytes32,address)")
_ADD: Final = _selector(_TOP_UP)


def _by_payer(transaction: bytes) -> PayerTransaction:
    return PayerTransaction(TxHash(keccak(transaction)), transaction)


def _find_call(raw: bytes, selector: bytes, key: ChannelKey, *, words: int) -> list[bytes]:
    """Return the arguments of the transaction's one call of the escrow, all static words.

    Raises:
        MalformedPayloadError: There is none, or more than one, or it is malformed.
    """
    try:
        chain_id, calls = read_calls(raw)
    except WireError as error:
        raise MalformedPayloadError(f"payload.transaction: {error}") from error
    if chain_id != key.chain_id:
        raise _wrong("for another chain")
    found = [call.data for call in calls if call.to == key.escrow]
    if len(found) != 1 or found[0][:_SELECTOR] != selector:
        raise _wrong("expected one call of the escrow, of the function that the action names")
    arguments = found[0][_SELECTOR:]
    if len(arguments) != words * _WORD:
        raise _wrong("the call of the escrow is malformed")
    return [arguments[at : at + _WORD] for at in range(0, len(arguments), _WORD)]


def _address(word: bytes) -> Address:
    if any(word[:12]):
        raise _wrong("the call of the escrow is malformed")
    return Address(word[12:])


def _wrong(what: str) -> MalformedPayloadError:
    return MalformedPayloadError(f"payload.transaction: {what}.")


def _foreign(payload: OpenPayload | TopUpPayload) -> MalformedPayloadError:
    return MalformedPayloadError(f"payload.type: {payload.type} is another method's.")
