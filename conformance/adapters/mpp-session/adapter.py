"""Answers one request of the conformance harness in tempoxyz/mpp-tools: JSON on stdin and stdout.

The harness owns the vectors and compares; this calls the package's own readers and writers. What
each operation takes and returns is in docs/engineering/conformance.md.
"""

# ruff: noqa: INP001 -- a program of its own

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from channel.errors import ConfigError, MppSessionError, WireError
from channel.methods.evm.method import EVM
from channel.types import ChannelId, ChannelKey, ChannelTerms
from channel.verify.challenge_id import ChallengeBinder
from channel.verify.typed_data import derive_channel_id
from channel.wire.challenge import (
    Challenge,
    echo_challenge,
    format_challenge,
    parse_challenges,
)
from channel.wire.credential import format_envelope, parse_envelope
from channel.wire.encoding import (
    canonical_json,
    decode_base64url,
    encode_base64url,
    format_hex,
    parse_address,
    parse_amount,
    parse_hex,
    parse_json_object,
)
from channel.wire.payload import format_payload
from channel.wire.receipt import format_receipt, parse_receipt

Input = Mapping[str, Any]
_DEFAULT_HEADER = "authorization"


def parse_challenge(data: Input) -> dict[str, Any]:
    """Return the one challenge of a `WWW-Authenticate` value, its request decoded."""
    found = parse_challenges([data["header"]])
    if len(found) != 1:
        raise WireError(f"expected one Payment challenge, found {len(found)}")
    return _decode(found[0])


def write_challenge(data: Input) -> dict[str, str]:
    """Return the `WWW-Authenticate` value of a challenge."""
    return {"header": format_challenge(_encode(data))}


def read_credential(data: Input) -> dict[str, Any]:
    """Return a credential of any method, its challenge's request decoded."""
    envelope = parse_envelope(data["header"])
    value = {"challenge": _decode(envelope.challenge), "payload": dict(envelope.payload)}
    return value if envelope.source is None else value | {"source": envelope.source}


def write_credential(data: Input) -> dict[str, str]:
    """Return the `Authorization` value of a credential of any method."""
    challenge = _encode(data["challenge"])
    return {"header": format_envelope(challenge, data["payload"], data.get("source"))}


def encode(data: Input) -> dict[str, str]:
    """Return UTF-8 text as base64url."""
    return {"text": encode_base64url(data["text"].encode())}


def decode(data: Input) -> dict[str, str]:
    """Return the UTF-8 text behind base64url."""
    try:
        return {"text": decode_base64url(data["text"]).decode()}
    except UnicodeDecodeError as error:
        raise WireError("not UTF-8") from error


def bind_challenge(data: Input) -> dict[str, str]:
    """Return the id that binds a challenge's parameters to a secret."""
    header = data.get("header")
    return {
        "id": ChallengeBinder([data["secretKey"].encode()]).bind(
            realm=data.get("realm", ""),
            method=data.get("method", ""),
            intent=data.get("intent", ""),
            request=encode_base64url(canonical_json(data.get("request") or {})),
            expires=data.get("expires"),
            digest=data.get("digest"),
            header=None if header is None or header.lower() == _DEFAULT_HEADER else header,
            opaque=data.get("opaque"),
        )
    }


def find_channel_id(data: Input) -> dict[str, str]:
    """Return the id of the channel that an `open` with these terms makes."""
    terms = ChannelTerms(
        *(parse_address(data[name]) for name in ("payer", "payee", "token", "authorizedSigner"))
    )
    channel_id = derive_channel_id(
        terms,
        salt=parse_hex(data["salt"], 32),
        chain_id=data["chainId"],
        escrow=parse_address(data["escrow"]),
    )
    return {"channelId": format_hex(channel_id)}


def digest_voucher(data: Input) -> dict[str, str]:
    """Return the EIP-712 digest that a voucher's signature is over."""
    channel_id = ChannelId(parse_hex(data["channelId"], 32))
    key = ChannelKey(data["chainId"], parse_address(data["escrow"]), channel_id)
    digest = EVM.voucher_digest(key, parse_amount(data["cumulativeAmount"]))
    return {"digest": format_hex(digest)}


def read_open(data: Input) -> dict[str, Any]:
    """Return an `open` payload as it is understood: in the wire's form, unknown members gone."""
    return {"payload": format_payload(EVM.parse_payload(data["payload"]))}


def read_receipt(data: Input) -> dict[str, Any]:
    """Return a session's receipt as it is understood, in the wire's form."""
    written = format_receipt(parse_receipt(data["header"]))
    return {"receipt": parse_json_object(decode_base64url(written))}


def _decode(challenge: Challenge) -> dict[str, Any]:
    value: dict[str, Any] = echo_challenge(challenge)
    return value | {"request": parse_json_object(decode_base64url(challenge.request))}


def _encode(data: Input) -> Challenge:
    request = encode_base64url(canonical_json(data["request"]))
    return Challenge(**{**data, "request": request})


OPERATIONS: dict[str, tuple[Callable[[Input], dict[str, Any]], str]] = {
    "challenge.parse": (parse_challenge, "parse_error"),
    "challenge.format": (write_challenge, "format_error"),
    "credential.parse": (read_credential, "parse_error"),
    "credential.format": (write_credential, "format_error"),
    "base64url.encode": (encode, "encoding_error"),
    "base64url.decode": (decode, "encoding_error"),
    "challenge.id": (bind_challenge, "generation_error"),
    "evm.session.channel_id": (find_channel_id, "generation_error"),
    "evm.session.voucher_digest": (digest_voucher, "generation_error"),
    "evm.session.open_payload": (read_open, "parse_error"),
    "evm.session.receipt": (read_receipt, "parse_error"),
}
"""Each with the type of the error where the input is refused."""


def answer(request: Input) -> dict[str, Any]:
    """Return the response to a request; what the input violates is an error of its operation."""
    name = request.get("op")
    if name not in OPERATIONS:
        return _failure("unsupported_operation", f"{name} is not supported")
    run, kind = OPERATIONS[name]
    try:
        return {"ok": True, "value": run(request["input"])}
    except (WireError, ConfigError) as error:
        return _failure(kind, str(error))
    except (MppSessionError, KeyError, TypeError) as error:
        return _failure(kind, f"{type(error).__name__}: {error}")


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"ok": False, "error": {"type": kind, "message": message}}


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
