"""Keys here and elsewhere: what a signing service answers is trusted for nothing (decision 14)."""

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from channel.errors import ConfigError
from channel.limits import SIGNER_ANSWER_BYTES_MAX
from channel.types import Address
from channel.verify.signature import recover, sign
from channel.verify.typed_data import keccak
from settlement.dev.devnet import Devnet
from settlement.errors import SignerError
from settlement.tx.encoding import UnsignedTx
from settlement.tx.manager import TxManager
from settlement.tx.signer import KeySigner, RemoteSigner
from tests.waiting import PATIENCE_S

KEY = b"\x11" * 32
OWNER = KeySigner(KEY).address
TX = UnsignedTx(
    chain_id=31337,
    nonce=0,
    tip_wei=1,
    max_fee_wei=2,
    gas=21_000,
    to=Address(bytes(20)),
    value_wei=0,
    calldata=b"",
)

Answer = Callable[[dict[str, Any]], Any]


def honest(asked: dict[str, Any], key: bytes = KEY) -> dict[str, str]:
    return {"signature": "0x" + sign(key, bytes.fromhex(asked["digest"][2:])).hex()}


@asynccontextmanager
async def service(answer: Answer, *, status: int = 200) -> AsyncIterator[tuple[str, list[Any]]]:
    """A signing service on this machine, and what it was asked."""
    asked: list[Any] = []

    async def handle(request: web.Request) -> web.Response:
        question = await request.json()
        asked.append({**question, "authorization": request.headers.get("Authorization")})
        said = answer(question)
        if asyncio.iscoroutine(said):
            said = await said
        if isinstance(said, bytes):
            return web.Response(body=said, status=status)
        return web.json_response(said, status=status)

    app = web.Application()
    app.router.add_post("/sign", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/sign", asked
    finally:
        await runner.cleanup()


@asynccontextmanager
async def remote(
    answer: Answer, *, status: int = 200, **more: Any
) -> AsyncIterator[tuple[RemoteSigner, list[Any]]]:
    async with service(answer, status=status) as (url, asked):
        signer = RemoteSigner(url, OWNER, **more)
        try:
            yield signer, asked
        finally:
            await signer.close()


async def test_a_key_here_signs_for_its_address_and_shows_nothing_else() -> None:
    """F-103."""
    signer = KeySigner(KEY)
    assert recover(TX.digest(), await signer.sign_transaction(TX)) == signer.address
    assert recover(keccak(b"x"), await signer.sign_message(keccak(b"x"))) == signer.address
    assert KEY.hex() not in repr(signer)
    assert signer.address.hex() in repr(signer)


@pytest.mark.parametrize("key", [b"", bytes(32), b"\x11" * 31, b"\x11" * 33, b"\xff" * 32])
def test_what_is_no_key_is_refused(key: bytes) -> None:
    with pytest.raises(ConfigError, match="private key"):
        KeySigner(key)


async def test_a_service_signs_transactions_it_can_read_and_messages() -> None:
    async with remote(honest, token="t0k3n") as (signer, asked):  # noqa: S106 -- a test's
        assert recover(TX.digest(), await signer.sign_transaction(TX)) == signer.address
        assert recover(keccak(b"x"), await signer.sign_message(keccak(b"x"))) == OWNER
    transaction, message = asked
    assert keccak(bytes.fromhex(transaction["transaction"][2:])).hex() == transaction["digest"][2:]
    assert (transaction["kind"], message["kind"]) == ("transaction", "message")
    assert transaction["address"] == "0x" + OWNER.hex()
    assert transaction["authorization"] == "Bearer t0k3n"
    assert "transaction" not in message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda asked: honest(asked, key=b"\x22" * 32), "signed with the key of"),
        (lambda _: {"signature": "0x" + sign(KEY, keccak(b"another thing")).hex()}, "something"),
        (lambda _: {"signature": "0x" + bytes(65).hex()}, "not a signature"),
        (lambda asked: {"signature": honest(asked)["signature"][:-2] + "00"}, "not a signature"),
        (lambda _: {"signature": "0x"}, "not a signature"),
        (lambda _: {"signature": "zz"}, "not a signature"),
        (lambda _: {"signature": 5}, "not a signature"),
        (lambda _: {}, "not a signature"),
        (lambda _: [], "not a signature"),
        (lambda _: b"<html>", "not a signature"),
        (lambda _: b"[" * 4000, "not a signature"),
        (lambda _: b" " * 5000, "longer"),
    ],
)
async def test_what_is_not_the_right_keys_signature_of_the_right_thing_is_none(
    answer: Answer, said: str
) -> None:
    async with remote(answer) as (signer, _):
        with pytest.raises(SignerError, match=said):
            await signer.sign_transaction(TX)


@pytest.mark.parametrize("status", [302, 401, 404, 500])
async def test_a_service_that_refuses_is_an_error_with_its_status(status: int) -> None:
    async with remote(honest, status=status) as (signer, _):
        with pytest.raises(SignerError, match=str(status)):
            await signer.sign_message(keccak(b"x"))


async def test_a_service_that_hangs_is_given_up() -> None:
    async def hang(_: Any) -> Any:
        await asyncio.sleep(60)

    async with remote(hang, timeout_s=0.1) as (signer, _):
        with pytest.raises(SignerError, match="does not answer"):
            await signer.sign_transaction(TX)


async def test_a_service_that_is_not_there_is_an_error_without_its_address() -> None:
    """F-103: an address may hold a key."""
    signer = RemoteSigner("http://127.0.0.1:9/secret-path", OWNER)
    with pytest.raises(SignerError) as caught:
        await signer.sign_transaction(TX)
    await signer.close()
    assert "secret-path" not in str(caught.value)


async def test_a_coded_answer_is_never_unpacked() -> None:
    """O-23: four thousand bytes that stand for millions."""
    bomb = gzip.compress(gzip.compress(bytes(100 * 1024 * 1024)))
    assert len(bomb) < 4096

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip, gzip\r\ncontent-length: {len(bomb)}"
        await reader.readuntil(b"}")
        writer.write(head.encode() + b"\r\n\r\n" + bomb)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        signer = RemoteSigner(f"http://127.0.0.1:{port}", OWNER, timeout_s=PATIENCE_S)
        tracemalloc.start()
        try:
            with pytest.raises(SignerError, match="not a signature"):
                await signer.sign_transaction(TX)
            assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
        finally:
            tracemalloc.stop()
            await signer.close()


async def test_a_key_elsewhere_sends_transactions(chain: Devnet) -> None:
    """What a settler with a key management service does; a refusal leaves the nonce free."""
    signed_by = [b"\x22" * 32, KEY]
    async with remote(lambda asked: honest(asked, key=signed_by.pop(0))) as (signer, _):
        await chain.fund(OWNER, ether=1)
        sender = TxManager(chain.rpc, signer)
        with pytest.raises(SignerError):
            await sender.send(Address(bytes(20)), b"", value_wei=1)
        receipt = await sender.send(Address(bytes(20)), b"", value_wei=1)
    sent = await chain.rpc.read("eth_getTransactionByHash", "0x" + receipt.tx_hash.hex())
    assert (sent["from"], sent["nonce"]) == ("0x" + OWNER.hex(), "0x0")


@pytest.mark.parametrize("more", [0, 1])
async def test_an_answer_may_be_as_long_as_its_bound(more: int) -> None:
    """O-23: and not a byte longer, though it begins with a signature."""

    def padded(asked: dict[str, Any]) -> bytes:
        return json.dumps(honest(asked)).encode().ljust(SIGNER_ANSWER_BYTES_MAX + more)

    async with service(padded) as (url, _):
        signer = RemoteSigner(url, OWNER)
        try:
            if more:
                with pytest.raises(SignerError, match="longer than a signature"):
                    await signer.sign_transaction(TX)
            else:
                assert await signer.sign_transaction(TX)
        finally:
            await signer.close()
