"""The message about questions, as a real server receives it."""

import asyncio
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from channel.client.store.sqlite import PaymentStore
from channel.errors import ConfigError
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.approvals.webhook import (
    FRESH_S,
    PAUSES_S,
    TOGETHER,
    Announcer,
    Webhook,
    is_genuine,
)
from tests.mpp_session.serving import serve
from tests.mpp_session.wallet.approvals.asks import ask_of, decision_of
from tests.mpp_session.wallet.approvals.served import SECRET, Clock, open_wallet

PAGE = "http://127.0.0.1:8404"


class Receiver(msgspec.Struct):
    """What arrived, and what is answered to the next messages; then 204."""

    url: str = ""
    got: list[tuple[dict[str, str], bytes]] = []
    answers: list[int] = []

    async def take(self, request: Request) -> Response:
        self.got.append((dict(request.headers), await request.body()))
        status = self.answers.pop(0) if self.answers else 204
        return Response(status_code=status, headers={"location": "/elsewhere"})


class Inbox(msgspec.Struct):
    """A wallet with questions and its announcer, whose pauses take no time."""

    store: PaymentStore
    approvals: Approvals
    announcer: Announcer
    clock: Clock
    pauses: list[float] = []

    async def ask(self, number: int) -> str:
        asked = ask_of(path=f"/{number}", reason="<b>pay me</b>\u202e")

        def change(db: object) -> str:
            error = self.approvals.request(db, asked, decision_of(), self.clock.now)  # type: ignore[arg-type]
            return str(getattr(error, "approval_id", error))

        return await self.store.transact(change)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    routes = [Route("/hook", made.take, methods=["POST"]), Route("/elsewhere", made.take)]
    async with serve(Starlette(routes=routes)) as url:
        made.url = f"{url}/hook"
        yield made


def make_certificate(path: Path) -> None:
    """Write a key and a certificate of `localhost` that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, SHA256())
    )
    plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(key.private_bytes(*plain) + signed.public_bytes(Encoding.PEM))


async def test_only_a_receiver_with_a_trusted_certificate_gets_the_message(
    tmp_path: Path, approvals: Approvals
) -> None:
    made, certificate = Receiver(), tmp_path / "localhost.pem"
    await asyncio.to_thread(make_certificate, certificate)
    routes = [Route("/hook", made.take, methods=["POST"])]
    async with (
        serve(Starlette(routes=routes), certificate=certificate) as url,
        inbox_for(tmp_path, approvals, f"{url}/hook") as distrusting,
    ):
        await distrusting.ask(1)
        await distrusting.announcer.look()
        assert made.got == []
        trust = await asyncio.to_thread(ssl.create_default_context, cafile=str(certificate))
        trusting = Announcer(
            approvals,
            distrusting.store.transact,
            Webhook(f"{url}/hook", SECRET, allow_loopback=True),
            page_url=PAGE,
            now=distrusting.clock,
            verify=trust,
        )
        await distrusting.ask(2)
        await trusting.look()
    assert len(made.got) == 1


@asynccontextmanager
async def inbox_for(folder: Path, approvals: Approvals, url: str) -> AsyncIterator[Inbox]:
    clock, pauses = Clock(), list[float]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async with open_wallet(folder) as store:
        announcer = Announcer(
            approvals,
            store.transact,
            Webhook(url, SECRET, allow_loopback=True),
            page_url=PAGE,
            now=clock,
            sleep=sleep,
        )
        yield Inbox(store, approvals, announcer, clock, pauses)


async def test_one_signed_message_tells_of_several_questions_and_none_repeats_it(
    tmp_path: Path, approvals: Approvals, receiver: Receiver
) -> None:
    """synapbus: reminders drowned the signal, and approvals were taken out."""
    async with inbox_for(tmp_path, approvals, receiver.url) as inbox:
        names = [await inbox.ask(number) for number in range(3)]
        assert await inbox.announcer.look() == 3
        assert await inbox.announcer.look() == 0
        inbox.clock.now += 600
        assert await inbox.announcer.look() == 0
    ((headers, body),) = receiver.got
    text = headers["x-mpp-timestamp"].encode() + b"." + body
    expected = hmac.new(SECRET.reveal().encode(), text, hashlib.sha256).hexdigest()
    assert headers["x-mpp-signature"] == f"sha256={expected}"
    message = json.loads(body)
    assert [each["id"] for each in message["approvals"]] == names
    first = message["approvals"][0]
    assert first["question"] == "scout asks to pay 5.000000 USDC to https://api.example:443"
    assert ["Reason", "<b>pay me</b>\\u202e"] in first["untrusted"]
    assert ["Amount", "5.000000 USDC"] in first["facts"]
    assert first["decide"] == f"{PAGE}/approvals/{names[0]}/decide"
    assert SECRET.reveal() not in body.decode()


FULL = """
CREATE TRIGGER full BEFORE INSERT ON approval_notice
BEGIN SELECT raise(ABORT, 'the disk is full'); END
"""


async def test_a_look_that_fails_ends_neither_its_task_nor_the_wallet(
    tmp_path: Path, approvals: Approvals, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The process of all agents ended with the task, as with any task that must run."""
    async with inbox_for(tmp_path, approvals, receiver.url) as inbox:
        first = await inbox.ask(1)
        await inbox.store.transact(lambda db: db.execute(FULL))
        looks = 0

        async def sleep(_: float) -> None:
            nonlocal looks
            looks += 1
            if looks == 2:
                await inbox.store.transact(lambda db: db.execute("DROP TRIGGER full"))
                await inbox.ask(2)
            if looks == 4:
                raise asyncio.CancelledError

        announcer = Announcer(
            approvals,
            inbox.store.transact,
            Webhook(receiver.url, SECRET, allow_loopback=True),
            page_url=PAGE,
            now=inbox.clock,
            sleep=sleep,
        )
        with pytest.raises(asyncio.CancelledError):
            await announcer.run()
        assert "the disk is full" in caplog.text
        bodies = [json.loads(body)["approvals"] for _, body in receiver.got]
        assert [len(each) for each in bodies] == [1, 1]
        assert bodies[0][0]["id"] == first


async def test_a_message_that_is_changed_or_old_is_not_genuine(
    tmp_path: Path, approvals: Approvals, receiver: Receiver
) -> None:
    async with inbox_for(tmp_path, approvals, receiver.url) as inbox:
        await inbox.ask(1)
        await inbox.announcer.look()
        now = inbox.clock.now
    ((headers, body),) = receiver.got
    timestamp, signature = headers["x-mpp-timestamp"], headers["x-mpp-signature"]

    def judge(
        *,
        at: float = now,
        timestamp: str = timestamp,
        signature: str = signature,
        body: bytes = body,
    ) -> bool:
        return is_genuine(SECRET, timestamp=timestamp, signature=signature, body=body, now=at)

    assert judge()
    assert judge(at=now + FRESH_S)
    assert not judge(at=now + FRESH_S + 1)
    assert not judge(body=body.replace(b"5.000000", b"0.000005"))
    assert not judge(timestamp=str(int(timestamp) + 1))
    assert not judge(timestamp="now")
    assert not judge(signature="sha256=" + "0" * 64)
    assert not judge(signature="sha256=é")


async def test_a_receiver_that_fails_is_tried_again_and_given_up(
    tmp_path: Path, approvals: Approvals, receiver: Receiver
) -> None:
    async with inbox_for(tmp_path, approvals, receiver.url) as inbox:
        receiver.answers = [500, 429]
        name = await inbox.ask(1)
        await inbox.announcer.look()
        assert len(receiver.got) == 3
        assert inbox.pauses == list(PAUSES_S[:2])
        receiver.answers = [500] * 9
        other = await inbox.ask(2)
        await inbox.announcer.look()
        assert len(receiver.got) == 3 + 1 + len(PAUSES_S)
        receiver.answers = [307]
        moved = await inbox.ask(3)
        await inbox.announcer.look()
        assert len(receiver.got) == 4 + 1 + len(PAUSES_S), "no redirect is followed"
        found = [
            await inbox.store.transact(lambda db, each=each: approvals.get(db, each))  # type: ignore[misc]
            for each in (name, other, moved)
        ]
        assert [each.notices[0].status for each in found] == [
            "sent",
            "answered 500",
            "answered 307",
        ]


async def test_a_message_has_so_many_questions_and_the_next_one_the_others(
    tmp_path: Path, approvals: Approvals, receiver: Receiver
) -> None:
    approvals.rules = msgspec.structs.replace(approvals.rules, pending_max=TOGETHER + 2)
    async with inbox_for(tmp_path, approvals, receiver.url) as inbox:
        for number in range(TOGETHER + 2):
            await inbox.ask(number)
        assert [await inbox.announcer.look() for _ in range(3)] == [TOGETHER, 2, 0]


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/x",
        "https://user:secret@hooks.example/x",
        "https://hooks.example/x#y",
        "https://hooks.example/a b",
        "https://127.1/x",
        "https://0x7f000001/x",
        "https://2130706433/x",
        "https://169.254.169.254/latest",
        "https://[fe80::1]/x",
        "https://0.0.0.0/x",
        "https://[::ffff:169.254.169.254]/x",
        "ftp://hooks.example/x",
        "https://",
        "https://hooks.example:99999/",
        "/x",
    ],
)
def test_a_webhook_leads_to_another_machine_by_https(url: str) -> None:
    with pytest.raises(ConfigError, match="webhook"):
        Webhook(url, SECRET, allow_loopback=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "[::ffff:127.0.0.1]"])
def test_this_machine_is_for_development(host: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(ConfigError, match="allow_loopback_http"):
            Webhook(f"{scheme}://{host}:9/x", SECRET)
        Webhook(f"{scheme}://{host}:9/x", SECRET, allow_loopback=True)
    assert Webhook("https://hooks.example/x?room=1", SECRET).url.endswith("room=1")
