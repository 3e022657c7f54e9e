"""What a broken or hostile node may answer to any question: all that JSON-RPC leaves room for.

Each is made from the questions and the true answers, so that it may be as near to the truth as a
real node's would be.
"""

import json
from collections.abc import Callable
from typing import Any, Final

__all__ = ["ODD_ANSWERS", "OddAnswer"]

OddAnswer = Callable[[Any, Any], bytes | tuple[int, dict[str, str], bytes]]
"""From the question (or questions) and the true answer to a body, or status, headers and body."""


def _each(change: Callable[[dict[str, Any]], dict[str, Any]]) -> OddAnswer:
    """Change each answer of a batch, or the only one."""

    def odd(_asked: Any, said: Any) -> bytes:
        changed = [change(dict(one)) for one in said] if isinstance(said, list) else change(said)
        return json.dumps(changed).encode()

    return odd


def _error(error: Any) -> OddAnswer:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": answer["id"], "error": error}

    return _each(change)


def _result(result: Any) -> OddAnswer:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": answer["id"], "result": result}

    return _each(change)


def _bytes_like(byte: str) -> OddAnswer:
    """As many bytes as the true result has, each of them this one."""

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        said = answer.get("result")
        length = len(said) - 2 if isinstance(said, str) else 64
        return {**answer, "result": "0x" + (byte * length)[:length]}

    return _each(change)


def _fields(value: Any) -> OddAnswer:
    """The true result with this in each field that is a number."""

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        said = answer.get("result")
        if not isinstance(said, dict):
            return {**answer, "result": value}
        numbers = {"number", "timestamp", "baseFeePerGas", "gasUsed", "blockNumber", "status"}
        return {**answer, "result": {**said, **dict.fromkeys(numbers & said.keys(), value)}}

    return _each(change)


def _batch(change: Callable[[list[Any]], Any]) -> OddAnswer:
    """Change the list of a batch; one answer alone stays as it is."""

    def odd(_asked: Any, said: Any) -> bytes:
        return json.dumps(change(list(said)) if isinstance(said, list) else said).encode()

    return odd


def _log(number: int) -> dict[str, Any]:
    return {
        "address": "0x" + 20 * "00",
        "topics": [],
        "data": "0x",
        "logIndex": hex(number),
        "transactionHash": "0x" + 32 * "00",
        "blockNumber": "0x1",
        "blockHash": "0x" + 32 * "00",
    }


_LOGS: Final = b'{"jsonrpc":"2.0","id":ID,"result":[%s]}' % b",".join(
    json.dumps(_log(number)).encode() for number in range(20_001)
)


def _id(asked: Any) -> bytes:
    return str((asked[0] if isinstance(asked, list) else asked)["id"]).encode()


ODD_ANSWERS: Final[dict[str, OddAnswer]] = {
    # Errors.
    "reverted": _error({"code": 3, "message": "execution reverted", "data": "0x"}),
    "reverted without data": _error({"code": -32000, "message": "execution reverted"}),
    "reverted for a reason": _error(
        {"code": 3, "message": "execution reverted", "data": "0x7fe1bcb4"}
    ),
    "reverted in words": _error({"code": 3, "message": "x", "data": "0x08c379a0" + 64 * "ff"}),
    "out of gas": _error({"code": -32000, "message": "out of gas"}),
    "no trie node": _error({"code": -32000, "message": "missing trie node 0x1 (path )"}),
    "internal error": _error({"code": -32603, "message": "Internal error"}),
    "too many requests": _error({"code": -32005, "message": "daily request count exceeded"}),
    "a code that is text": _error({"code": "E_BUSY", "message": None}),
    "a code without bound": _error({"code": 10**30, "message": 5}),
    "an error that is text": _error("busy"),
    "an error that is a list": _error(["busy"]),
    "an empty error": _error({}),
    "neither result nor error": _each(lambda answer: {"jsonrpc": "2.0", "id": answer["id"]}),
    # Results.
    "null": _result(None),
    "a number": _result(17),
    "true": _result(result=True),
    "a fraction": _result(0.5),
    "empty text": _result(""),
    "0x": _result("0x"),
    "not hexadecimal": _result("0xzz"),
    "hexadecimal without end": _result("0x" + 20_000 * "f"),
    "an empty list": _result([]),
    "an empty object": _result({}),
    "a list of null": _result([None, None]),
    "many logs": lambda asked, _said: _LOGS.replace(b"ID", _id(asked)),
    "bytes of ff": _bytes_like("f"),
    "one byte less": _each(lambda a: {**a, "result": str(a.get("result"))[:-2]}),
    "one byte more": _each(lambda a: {**a, "result": str(a.get("result")) + "00"}),
    "numbers without bound": _fields("0x" + 64 * "f"),
    "numbers near the bound": _fields(hex(2**63 - 1)),
    "numbers below zero": _fields("-0x1"),
    "numbers that are null": _fields(None),
    "numbers that are numbers": _fields(1),
    # Which answer it is.
    "another id": _each(lambda answer: {**answer, "id": answer["id"] + 1}),
    "the id as text": _each(lambda answer: {**answer, "id": str(answer["id"])}),
    "no id": _each(lambda answer: {**answer, "id": None}),
    "a batch that lacks one": _batch(lambda said: said[:-1]),
    "a batch with one twice": _batch(lambda said: [*said[:-1], said[0]]),
    "a batch in another order": _batch(lambda said: said[::-1]),
    "a batch with strangers": _batch(lambda said: [None, "x", *said[2:]]),
    "one object for a batch": _batch(lambda said: said[0]),
    "a list for one": lambda _asked, said: json.dumps([said]).encode(),
    # No JSON-RPC at all.
    "a page": lambda _asked, _said: b"<html><body>Just a moment...</body></html>",
    "nothing": lambda _asked, _said: b"",
    "half": lambda _asked, said: (body := json.dumps(said).encode())[: len(body) // 2],
    "no text": lambda _asked, _said: b"\xff\xfe\x00{}",
    "not a number": lambda _asked, _said: b'{"jsonrpc":"2.0","id":1,"result":NaN}',
    "a nest": lambda _asked, _said: b"[" * 100_000 + b"]" * 100_000,
    "coded": lambda _asked, said: (200, {"Content-Encoding": "gzip"}, json.dumps(said).encode()),
    "forbidden": lambda _asked, _said: (403, {}, b"{}"),
    "rate limited": lambda _asked, _said: (429, {"Retry-After": "3600"}, b"{}"),
    "elsewhere": lambda _asked, _said: (302, {"Location": "http://127.0.0.1:1/"}, b""),
}
