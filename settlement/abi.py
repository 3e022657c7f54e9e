"""Calls, events and reverts of the contracts as values: the only module that knows the ABI (pure).

Written against `contracts/src/interfaces/ISessionEscrow.sol`, the reference. It does not use
contract objects of web3.py: they cost milliseconds where this code costs microseconds.
"""

from collections.abc import Sequence
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError

from channel.chain import OpenedLog, ToppedUpLog
from channel.errors import ChainUnavailableError
from channel.limits import AMOUNT_MAX
from channel.types import Address, ChannelFact, ChannelId, ChannelKey, ChannelTerms
from channel.verify.typed_data import keccak
from settlement.types import (
    BatchEntry,
    ChannelClosedLog,
    CloseRequestedLog,
    EntrySkippedLog,
    Log,
    RevertReason,
    SettledLog,
)

__all__ = [
    "AUTHORIZATION_USED_TOPIC",
    "CHANNEL_CLOSED_TOPIC",
    "CHANNEL_OPENED_TOPIC",
    "TOPPED_UP_TOPIC",
    "TRANSFER_TOPIC",
    "EscrowLog",
    "Function",
    "allowance",
    "approve",
    "authorization_state",
    "balance_of",
    "close",
    "close_batch",
    "close_batch_with_authorization",
    "close_grace_period",
    "close_with_authorization",
    "decode_channel",
    "decode_channels",
    "decode_entries",
    "decode_grace_period",
    "decode_log",
    "decode_revert",
    "domain_separator",
    "eip712_domain",
    "get_channel",
    "get_channels",
    "is_valid_voucher_signer",
    "name",
    "nonce_bitmap",
    "open_",
    "open_with_authorization",
    "open_with_permit2",
    "permit2",
    "receive_with_authorization",
    "request_close",
    "settle",
    "settle_batch",
    "settle_batch_with_authorization",
    "settle_with_authorization",
    "token",
    "token_domain_separator",
    "top_up",
    "top_up_with_authorization",
    "top_up_with_permit2",
    "transfer",
    "transfer_with_authorization",
    "version",
    "withdraw",
]

EscrowLog = (
    OpenedLog | ToppedUpLog | SettledLog | CloseRequestedLog | ChannelClosedLog | EntrySkippedLog
)

_WORD = 32
_CHANNEL_WORDS = 8
_TIME_MAX = 2**48 - 1  # seconds and block numbers: sums of a few fit the ledger's columns
_SELECTOR_BYTES = 4
_TEXT_CHARS_MAX = 200


class Function:
    """One contract function: `encode` returns calldata, `decode` reads the return value."""

    __slots__ = ("_inputs", "_outputs", "selector")

    def __init__(self, signature: str, returns: Sequence[str] = ()) -> None:
        self.selector = keccak(signature.encode())[:_SELECTOR_BYTES]
        self._inputs = _split_types(signature[signature.index("(") + 1 : -1])
        self._outputs = list(returns)

    def encode(self, *arguments: object) -> bytes:
        """Return calldata; the arguments are in the contract's order."""
        return self.selector + encode(self._inputs, arguments)

    def decode_arguments(self, calldata: bytes) -> tuple[Any, ...]:
        """Return the arguments of `encode`. Only for calldata that this package made."""
        return tuple(decode(self._inputs, calldata[_SELECTOR_BYTES:]))

    def decode(self, answer: bytes) -> tuple[object, ...]:
        """Return the values; raise `ChainUnavailableError` if the answer has another shape."""
        values = self.decode_or_none(answer)
        if values is None:
            raise _nonsense()
        return values

    def decode_or_none(self, answer: bytes) -> tuple[object, ...] | None:
        """Return the values, or None if the answer has another shape."""
        try:
            return tuple(decode(self._outputs, answer))
        except (DecodingError, ValueError, OverflowError):  # invalid text, an offset out of range
            return None

    def decode_int(self, answer: bytes) -> int:
        """Return the single integer this function returns."""
        (value,) = self.decode(answer)
        if not isinstance(value, int):
            raise _nonsense()
        return value

    def decode_address(self, answer: bytes) -> Address:
        """Return the single address this function returns."""
        if len(answer) != _WORD:
            raise _nonsense()
        return _address(answer)


def _split_types(listed: str) -> list[str]:
    """Split at the commas outside tuples."""
    types, depth = [""], 0
    for char in listed:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            types.append("")
        else:
            types[-1] += char
    return [] if types == [""] else types


# The escrow.
open_ = Function("open(address,address,uint128,bytes32,address)", ["bytes32"])
top_up = Function("topUp(bytes32,uint128)")
settle = Function("settle(bytes32,uint128,bytes)")
close = Function("close(bytes32,uint128,bytes)")
settle_batch = Function("settleBatch((bytes32,uint128,bytes)[])", ["uint256"])
close_batch = Function("closeBatch((bytes32,uint128,bytes)[])", ["uint256"])
settle_with_authorization = Function(
    "settleWithAuthorization(bytes32,uint128,uint256,uint256,bytes,bytes)"
)
close_with_authorization = Function(
    "closeWithAuthorization(bytes32,uint128,uint256,uint256,bytes,bytes)"
)
settle_batch_with_authorization = Function(
    "settleBatchWithAuthorization(address,(bytes32,uint128,bytes)[],uint256,uint256,bytes)",
    ["uint256"],
)
close_batch_with_authorization = Function(
    "closeBatchWithAuthorization(address,(bytes32,uint128,bytes)[],uint256,uint256,bytes)",
    ["uint256"],
)
open_with_authorization = Function(
    "openWithAuthorization(address,address,uint128,bytes32,address,address,uint256,uint256,"
    "bytes32,bytes)",
    ["bytes32"],
)
open_with_permit2 = Function(
    "openWithPermit2(address,address,uint128,bytes32,address,address,uint256,uint256,bytes)",
    ["bytes32"],
)
top_up_with_authorization = Function(
    "topUpWithAuthorization(bytes32,uint128,address,bytes32,uint256,uint256,bytes32,bytes)"
)
top_up_with_permit2 = Function("topUpWithPermit2(bytes32,uint128,address,uint256,uint256,bytes)")
request_close = Function("requestClose(bytes32)")
withdraw = Function("withdraw(bytes32)")
get_channel = Function("getChannel(bytes32)")
get_channels = Function("getChannels(bytes32[])")
domain_separator = Function("domainSeparator()", ["bytes32"])
close_grace_period = Function("CLOSE_GRACE_PERIOD()", ["uint64"])
token = Function("TOKEN()", ["address"])
permit2 = Function("PERMIT2()", ["address"])

is_valid_voucher_signer = Function("isValidVoucherSigner(address,bytes32,bytes)", ["bool"])

# Tokens.
approve = Function("approve(address,uint256)")
allowance = Function("allowance(address,address)", ["uint256"])
balance_of = Function("balanceOf(address)", ["uint256"])
transfer = Function("transfer(address,uint256)")
name = Function("name()", ["string"])
version = Function("version()", ["string"])
symbol = Function("symbol()", ["string"])
decimals = Function("decimals()", ["uint8"])
token_domain_separator = Function("DOMAIN_SEPARATOR()", ["bytes32"])
eip712_domain = Function(
    "eip712Domain()",
    ["bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]"],
)
authorization_state = Function("authorizationState(address,bytes32)", ["bool"])
receive_with_authorization = Function(
    "receiveWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
)
# With v, r and s: unlike the overload with `bytes`, every version of the token has it.
transfer_with_authorization = Function(
    "transferWithAuthorization"
    "(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
)

# Permit2.
nonce_bitmap = Function("nonceBitmap(address,uint256)", ["uint256"])


def decode_channel(key: ChannelKey, answer: bytes, *, block_number: int) -> ChannelFact | None:
    """Decode the result of `getChannel`; None if the channel never existed.

    Raises:
        ChainUnavailableError: The answer is not a channel.
    """
    if len(answer) != _CHANNEL_WORDS * _WORD:
        raise _nonsense()
    return _channel(key, answer, block_number)


def decode_channels(
    keys: Sequence[ChannelKey], answer: bytes, *, block_number: int
) -> list[ChannelFact | None]:
    """Read what `getChannels` returned for these keys, in their order."""
    size = _CHANNEL_WORDS * _WORD
    head = 2 * _WORD
    if len(answer) != head + len(keys) * size or _uint(answer, 1) != len(keys):
        raise _nonsense()
    return [
        _channel(key, answer[head + i * size : head + (i + 1) * size], block_number)
        for i, key in enumerate(keys)
    ]


def _channel(key: ChannelKey, words: bytes, block_number: int) -> ChannelFact | None:
    payer = _address(words, 2)
    if not any(payer):
        return None
    deposit, settled = _uint(words, 6), _uint(words, 7)
    close_requested_at, is_finalized = _uint(words, 1), _uint(words, 0)
    is_possible = (
        settled <= deposit <= AMOUNT_MAX
        and max(close_requested_at, block_number) <= _TIME_MAX
        and is_finalized <= 1
    )
    if not is_possible:  # no escrow returns that, and storing it would stop the ledger
        raise _nonsense()
    return ChannelFact(
        key=key,
        terms=ChannelTerms(
            payer=payer,
            payee=_address(words, 3),
            token=_address(words, 4),
            authorized_signer=_address(words, 5),
        ),
        deposit=deposit,
        settled=settled,
        close_requested_at=close_requested_at,
        is_finalized=bool(is_finalized),
        block_number=block_number,
    )


def decode_grace_period(answer: bytes) -> int:
    """Return the escrow's grace period in seconds.

    Raises:
        ChainUnavailableError: The answer is not a grace period.
    """
    grace_period_s = close_grace_period.decode_int(answer)
    if grace_period_s > _TIME_MAX:
        raise _nonsense()
    return grace_period_s


_SINGLE = (settle, close, settle_with_authorization, close_with_authorization)
_BATCHES = (settle_batch, close_batch)
_RELAYED_BATCHES = (settle_batch_with_authorization, close_batch_with_authorization)


def decode_entries(calldata: bytes) -> list[BatchEntry]:
    """Return the entries of a settle or close built by this package; nothing for another call."""
    selector = calldata[:_SELECTOR_BYTES]
    for function in _SINGLE:
        if function.selector == selector:
            channel_id, amount, *_, signature = function.decode_arguments(calldata)
            return [BatchEntry(ChannelId(channel_id), amount, signature)]
    for function in (*_BATCHES, *_RELAYED_BATCHES):
        if function.selector == selector:
            entries = function.decode_arguments(calldata)[function in _RELAYED_BATCHES]
            return [BatchEntry(ChannelId(entry[0]), entry[1], entry[2]) for entry in entries]
    return []


def _topic(signature: str) -> bytes:
    return bytes(keccak(signature.encode()))


CHANNEL_OPENED_TOPIC = _topic(
    "ChannelOpened(bytes32,address,address,address,address,bytes32,uint256)"
)
TOPPED_UP_TOPIC = _topic("TopUp(bytes32,address,address,uint256,uint256)")
_SETTLED = _topic("Settled(bytes32,address,address,uint256,uint256,uint256)")
_CLOSE_REQUESTED = _topic("CloseRequested(bytes32,address,address,uint256)")
CHANNEL_CLOSED_TOPIC = _topic("ChannelClosed(bytes32,address,address,uint256,uint256)")
AUTHORIZATION_USED_TOPIC = _topic("AuthorizationUsed(address,bytes32)")
TRANSFER_TOPIC = _topic("Transfer(address,address,uint256)")

_PAYLOAD_WORDS = {
    CHANNEL_OPENED_TOPIC: 4,
    TOPPED_UP_TOPIC: 2,
    _SETTLED: 3,
    _CLOSE_REQUESTED: 1,
    CHANNEL_CLOSED_TOPIC: 2,
}
_ESCROW_TOPICS = 4
_ENTRY_SKIPPED = _topic("BatchEntrySkipped(bytes32,bytes4)")
_SKIPPED_TOPICS = 2


def decode_log(log: Log) -> EscrowLog | None:
    """Decode an escrow's event; None for any other. The caller checks the emitter (F-84).

    Raises:
        ChainUnavailableError: It has the event's topic but another shape.
    """
    words = _PAYLOAD_WORDS.get(log.topics[0]) if log.topics else None
    if words is None:
        is_skip = log.topics[:1] == (_ENTRY_SKIPPED,)
        return _skipped(log) if is_skip else None
    if len(log.topics) != _ESCROW_TOPICS or len(log.payload) != words * _WORD:
        raise _nonsense()
    topic, channel_id, payload = log.topics[0], ChannelId(log.topics[1]), log.payload
    if topic == CHANNEL_OPENED_TOPIC:
        return OpenedLog(channel_id=channel_id, log_index=log.log_index)
    if topic == TOPPED_UP_TOPIC:
        return ToppedUpLog(
            channel_id=channel_id, additional_deposit=_uint(payload, 0), log_index=log.log_index
        )
    if topic == _SETTLED:
        return SettledLog(channel_id=channel_id, paid=_uint(payload, 1), settled=_uint(payload, 2))
    if topic == _CLOSE_REQUESTED:
        return CloseRequestedLog(channel_id=channel_id, grace_ends_at=_uint(payload, 0))
    return ChannelClosedLog(
        channel_id=channel_id, settled=_uint(payload, 0), refunded=_uint(payload, 1)
    )


def _skipped(log: Log) -> EntrySkippedLog:
    if len(log.topics) != _SKIPPED_TOPICS or len(log.payload) != _WORD:
        raise _nonsense()
    reason, _ = decode_revert(log.payload[:_SELECTOR_BYTES])
    return EntrySkippedLog(channel_id=ChannelId(log.topics[1]), reason=reason)


def _selector(signature: str) -> bytes:
    return bytes(keccak(signature.encode())[:_SELECTOR_BYTES])


_ERROR_STRING = _selector("Error(string)")

_REASONS: dict[bytes, RevertReason] = {
    _selector(signature): reason
    for signature, reason in {
        "ChannelAlreadyExists()": RevertReason.CHANNEL_ALREADY_EXISTS,
        "ChannelNotFound()": RevertReason.CHANNEL_NOT_FOUND,
        "ChannelFinalized()": RevertReason.CHANNEL_FINALIZED,
        "NotPayee()": RevertReason.NOT_PAYEE,
        "NotPayer()": RevertReason.NOT_PAYER,
        "AmountNotIncreasing()": RevertReason.AMOUNT_NOT_INCREASING,
        "AmountExceedsDeposit()": RevertReason.AMOUNT_EXCEEDS_DEPOSIT,
        "InvalidSignature()": RevertReason.INVALID_SIGNATURE,
        "NonceMismatch()": RevertReason.NONCE_MISMATCH,
        "NonceAlreadyUsed()": RevertReason.NONCE_ALREADY_USED,
        "AuthorizationExpired()": RevertReason.AUTHORIZATION_EXPIRED,
        "CloseNotReady()": RevertReason.CLOSE_NOT_READY,
        "ZeroDeposit()": RevertReason.ZERO_DEPOSIT,
        "DepositOverflow()": RevertReason.DEPOSIT_OVERFLOW,
        "InvalidPayee()": RevertReason.INVALID_PAYEE,
        "InvalidToken(address)": RevertReason.INVALID_TOKEN,
        "DepositNotReceived(uint256,uint256)": RevertReason.TOKEN_REFUSED,
        "InsufficientGas()": RevertReason.OUT_OF_GAS,
        "NothingToClaim()": RevertReason.NOTHING_TO_CLAIM,
        # Tokens' errors (OpenZeppelin, DevUSD), and the escrow's when a token call fails.
        "SafeERC20FailedOperation(address)": RevertReason.TOKEN_REFUSED,
        "ERC20InsufficientBalance(address,uint256,uint256)": RevertReason.TOKEN_REFUSED,
        "ERC20InsufficientAllowance(address,uint256,uint256)": RevertReason.TOKEN_REFUSED,
        "EnforcedPause()": RevertReason.TOKEN_REFUSED,
        "AccountBlacklisted(address)": RevertReason.TOKEN_REFUSED,
        "AuthorizationExpired(uint256)": RevertReason.TOKEN_REFUSED,
        "AuthorizationNotYetValid(uint256)": RevertReason.TOKEN_REFUSED,
        "AuthorizationUsedOrCanceled(address,bytes32)": RevertReason.TOKEN_REFUSED,
    }.items()
}


def decode_revert(answer: bytes) -> tuple[RevertReason, str]:
    """Return why a call reverted, and the text of the revert if it has one.

    The escrow itself reverts without text: `Error(string)` is the token's.
    """
    selector = answer[:_SELECTOR_BYTES]
    if selector == _ERROR_STRING:
        return RevertReason.TOKEN_REFUSED, _text(answer[_SELECTOR_BYTES:])
    return _REASONS.get(selector, RevertReason.UNKNOWN), ""


def _text(words: bytes) -> str:
    try:
        (text,) = decode(["string"], words)
    except (DecodingError, ValueError, OverflowError):
        return ""
    return "".join(char for char in text if char.isprintable())[:_TEXT_CHARS_MAX]


def _uint(words: bytes, index: int) -> int:
    return int.from_bytes(words[index * _WORD : (index + 1) * _WORD], "big")


def _address(words: bytes, index: int = 0) -> Address:
    return Address(words[index * _WORD + 12 : (index + 1) * _WORD])


def _nonsense() -> ChainUnavailableError:
    return ChainUnavailableError("The chain's answer does not have the contract's shape.")
