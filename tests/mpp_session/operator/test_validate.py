"""Each check from outside finds the one fault of a server that has it, and nothing else."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from channel.errors import WireError
from channel.limits import AUTHORIZATION_BYTES_MAX, CHECKED_ANSWER_BYTES_MAX
from channel.types import Address
from channel.wire.challenge import Challenge, format_challenge
from channel.wire.encoding import (
    canonical_json,
    decode_base64url,
    encode_base64url,
    format_checksum_address,
    format_timestamp,
    parse_json_object,
)
from channel.wire.problem import PROBLEM_CONTENT_TYPE, problem_uri
from mpp_session.operator.doctor import Verdict
from mpp_session.operator.validate import Examined, Subject, examine_server
from tests.mpp_session.serving import serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADDRESS = format_checksum_address(Address(bytes(range(20))))
REQUEST: dict[str, Any] = {
    "amount": "10",
    "currency": ADDRESS,
    "recipient": ADDRESS,
    "unitType": "request",
    "methodDetails": {"chainId": 31337, "escrowContract": ADDRESS},
}


class Shop:
    """A server that does everything right, but for what a test changes."""

    def __init__(self) -> None:
        self.intents = ["session"]
        self.request = REQUEST
        self.encode: Callable[[dict[str, Any]], bytes] = canonical_json
        self.expires: str | None = format_timestamp(time.time() + 900)
        self.ids: str | None = None
        self.lines: list[str] | None = None
        """Of `WWW-Authenticate`, instead of the offers."""
        self.headers = {"cache-control": "no-store", "content-type": PROBLEM_CONTENT_TYPE}
        """Of an unpaid answer."""
        self.problem: dict[str, Any] = {}
        """Changes of an unpaid answer's problem."""
        self.answers: dict[str, Response | Exception] = {}
        """What is answered instead, by what is asked."""
        self.also: dict[str, dict[str, str]] = {}
        """Further headers, by what is asked."""
        self.obeys = True
        self.served: dict[str, Response] = {}
        """Other paths."""
        self.issued: dict[str, dict[str, str]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if request.url.path == "/thing":
            what, kind, status = self.read(request)
            found = self.answers.get(what) or self.refuse(request, what, kind, status)
            if isinstance(found, Exception):
                raise found
        else:
            found = self.served.get(request.url.path, PlainTextResponse("none", 404))
        await found(scope, receive, send)

    def read(self, request: Request) -> tuple[str, str, int]:
        """Return what is asked, and the problem that answers it."""
        values = request.headers.getlist("authorization")
        if not values:
            asked = "HEAD" if request.method == "HEAD" else "unpaid"
            return ("preference" if "accept-payment" in request.headers else asked), "", 402
        if len(values) > 1:
            return "twice", "bad-request", 400
        if len(values[0]) > AUTHORIZATION_BYTES_MAX:
            return "oversize", "malformed-credential", 402
        try:
            envelope = parse_json_object(decode_base64url(values[0].partition(" ")[2]))
            echoed: dict[str, str] = envelope["challenge"]
        except (WireError, KeyError):
            return "malformed", "malformed-credential", 402
        issued = self.issued.get(echoed["id"])
        if issued == echoed:
            return "unsigned", "session/channel-not-found", 410
        what = "unknown"
        if issued is not None:
            what = "altered" if issued.get("expires") == echoed.get("expires") else "expired"
        return what, "session/challenge-not-found", 402

    def refuse(self, request: Request, what: str, kind: str, status: int) -> Response:
        wire = {
            "type": problem_uri(kind or "payment-required"),
            "title": "Refused",
            "status": status,
            "detail": "Pay.",
        } | (self.problem if what == "unpaid" else {})
        response = Response(msgspec.json.encode(wire), status, dict(self.headers))
        if what != "unpaid":
            response.headers["content-type"] = PROBLEM_CONTENT_TYPE
        for line in self.lines if self.lines is not None else self.offer(request):
            response.headers.append("WWW-Authenticate", line)
        response.headers.update(self.also.get(what, {}))
        return response

    def offer(self, request: Request) -> list[str]:
        lines = []
        ranges = request.headers.get("accept-payment", "")
        wanted = [one for one in self.intents if f"evm/{one}" in ranges]
        for intent in wanted or self.intents if self.obeys else self.intents:
            challenge = Challenge(
                id=self.ids or f"id-{len(self.issued)}",
                realm="tests",
                method="evm",
                intent=intent,
                request=encode_base64url(self.encode(self.request)),
                expires=self.expires,
            )
            echoed = {k: v for k, v in msgspec.structs.asdict(challenge).items() if v is not None}
            self.issued[challenge.id] = echoed
            lines.append(format_challenge(challenge))
        return lines

    def publish(self, amount: str | None, changes: Mapping[str, Any] | None = None) -> None:
        """Serve a discovery document of what is sold."""
        offer = {"method": "evm", "intent": "session", "amount": amount, "currency": ADDRESS}
        operation = {"x-payment-info": {"offers": [offer]}, "responses": {"402": {}}}
        operation |= changes or {}
        document = {"openapi": "3.1.0", "paths": {"/{name}": {"get": operation}}}
        self.served["/openapi.json"] = Response(msgspec.json.encode(document))


def without(*names: str, **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in REQUEST.items() if k not in names} | changes


def served(text: str = "here you are") -> Response:
    return PlainTextResponse(text)


def failing() -> Response:
    return PlainTextResponse("oops", 500)


TRACE = 'Traceback (most recent call last):\n  File "/srv/app.py", line 3'
PAGE = {"access-control-allow-origin": "*"}
DETAILS = REQUEST["methodDetails"]

FAULTS: list[tuple[str, str, Callable[[Shop], Any]]] = [
    ("transport", "redirects to", lambda s: s.answers.update(unpaid=RedirectResponse("/other"))),
    ("unpaid request", "gets 200", lambda s: s.answers.update(unpaid=served())),
    ("unpaid request", "gets 500", lambda s: s.answers.update(unpaid=failing())),
    ("unpaid request", "without a challenge", lambda s: setattr(s, "lines", ["Bearer"])),
    ("unpaid request", "cannot be read", lambda s: setattr(s, "lines", ['Payment id="1"'])),
    ("challenge", "canonical", lambda s: setattr(s, "encode", msgspec.json.encode)),
    ("challenge", "amount", lambda s: setattr(s, "request", without(amount="0"))),
    ("challenge", "amount", lambda s: setattr(s, "request", without(amount=10))),
    ("challenge", "currency", lambda s: setattr(s, "request", without("currency"))),
    ("challenge", "recipient", lambda s: setattr(s, "request", without(recipient="0x12"))),
    ("challenge", "chainId", lambda s: setattr(s, "request", without("methodDetails"))),
    (
        "challenge",
        "escrowContract",
        lambda s: setattr(s, "request", without(methodDetails={"chainId": 1})),
    ),
    (
        "challenge",
        "bytes of challenges",
        lambda s: setattr(s, "request", without(description="x" * 8000)),
    ),
    ("expiry", "expires None", lambda s: setattr(s, "expires", None)),
    ("expiry", "has expired", lambda s: setattr(s, "expires", "2021-01-01T00:00:00Z")),
    ("expiry", "holds until", lambda s: setattr(s, "expires", "2199-01-01T00:00:00Z")),
    ("expiry", "offset", lambda s: setattr(s, "expires", "2199-01-01T00:00:00")),
    ("ids", "one id", lambda s: setattr(s, "ids", "always")),
    ("HEAD", "gets 405", lambda s: s.answers.update(HEAD=Response(status_code=405))),
    ("caching", "public", lambda s: s.headers.update({"cache-control": "public"})),
    ("problem", "text/html", lambda s: s.headers.update({"content-type": "text/html"})),
    ("problem", "no draft", lambda s: s.problem.update(type="about:blank")),
    ("problem", "states status 200", lambda s: s.problem.update(status=200)),
    ("problem", "no detail", lambda s: s.problem.update(detail="")),
    ("malformed credential", "gets 500", lambda s: s.answers.update(malformed=failing())),
    (
        "malformed credential",
        "content type",
        lambda s: s.answers.update(malformed=Response("", 400)),
    ),
    ("unknown challenge", "gets 200", lambda s: s.answers.update(unknown=served())),
    ("altered challenge", "gets 200", lambda s: s.answers.update(altered=served())),
    ("expired challenge", "gets 200", lambda s: s.answers.update(expired=served())),
    ("unsigned voucher", "gets 200", lambda s: s.answers.update(unsigned=served())),
    ("oversize credential", "gets 500", lambda s: s.answers.update(oversize=failing())),
    ("two credentials", "gets 200|get 200", lambda s: s.answers.update(twice=served())),
    ("Accept-Payment", "gets 500", lambda s: s.answers.update(preference=failing())),
    (
        "Accept-Payment",
        "takes evm charge alone",
        lambda s: vars(s).update(intents=["session", "charge"], obeys=False),
    ),
    ("x402", "cannot be read", lambda s: s.headers.update({"PAYMENT-REQUIRED": "e30"})),
    ("openapi", "does not offer", lambda s: s.publish("11")),
    ("openapi", "no x-payment-info", lambda s: s.publish("10", {"x-payment-info": {"offers": 1}})),
    ("openapi", "no response 402", lambda s: s.publish("10", {"responses": None})),
    (
        "openapi",
        "cannot be read",
        lambda s: s.served.update(
            {"/openapi.json": served("{}" + " " * (CHECKED_ANSWER_BYTES_MAX - 1))}
        ),
    ),
    ("openapi", "has no GET /thing", lambda s: s.served.update({"/openapi.json": served("{}")})),
    (
        "llms.txt",
        "begins with '<html>'",
        lambda s: s.served.update({"/llms.txt": served("<html>")}),
    ),
    ("CORS", "and not payment-receipt", lambda s: s.headers.update(PAGE)),
    ("leaks", "Traceback", lambda s: s.also.update(malformed={"x-debug": TRACE[:33]})),
    ("leaks", "Traceback", lambda s: s.problem.update(detail=TRACE)),
    ("receipts", "410 with a", lambda s: s.also.update(unsigned={"Payment-Receipt": "x"})),
]


class Door:
    """The port behind which each test has its own shop."""

    def __init__(self) -> None:
        self.shop = Shop()
        self.url = ""
        self.client: httpx.AsyncClient

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.shop(scope, receive, send)

    async def examine(self, shop: Shop) -> list[Examined]:
        self.shop = shop
        subject = Subject(url=f"{self.url}/thing")
        return [check async for check in examine_server(subject, self.client)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def door() -> AsyncIterator[Door]:
    door = Door()
    async with serve(door, head_bytes_max=2**20) as door.url, httpx.AsyncClient() as door.client:
        yield door


async def test_a_server_that_does_everything_right_has_no_fault(door: Door) -> None:
    """With all that is optional, and with none of it; every check names its requirements."""
    checks = await door.examine(Shop())
    assert {check.name: check.found for check in checks if check.remedy} == {}
    skipped = {check.name for check in checks if check.verdict is Verdict.SKIPPED}
    assert skipped == {"x402", "openapi", "llms.txt", "CORS"}
    whole = Shop()
    whole.publish(None)
    whole.served["/llms.txt"] = served("# Shop")
    whole.headers |= {**PAGE, "access-control-expose-headers": "WWW-Authenticate, Payment-Receipt"}
    checks = await door.examine(whole)
    assert {check.name for check in checks if check.verdict is not Verdict.OK} == {"x402"}
    assert all(check.requirements for check in checks if check.name != "x402")


@pytest.mark.parametrize(
    ("name", "found", "break_"), FAULTS, ids=[f"{one[0]}-{one[1]}" for one in FAULTS]
)
async def test_a_check_finds_its_fault_and_no_other(
    door: Door, name: str, found: str, break_: Callable[[Shop], Any]
) -> None:
    shop = Shop()
    break_(shop)
    checks = await door.examine(shop)
    bad = [one for one in checks if one.verdict in (Verdict.FAULT, Verdict.ADVICE)]
    assert [check.name for check in bad] == [name], bad
    assert any(words in bad[0].found for words in found.split("|")), bad[0].found
    assert bad[0].remedy
    later = [check for check in checks if check.found == f"{name} failed"]
    assert bool(later) == (name in {"transport", "unpaid request", "challenge"})


async def test_nothing_is_sent_to_a_server_that_is_not_encrypted(door: Door) -> None:
    subject = Subject(url="http://shop.example/thing")
    first, *_ = [check async for check in examine_server(subject, door.client)]
    assert (first.name, first.verdict) == ("transport", Verdict.FAULT)
    assert "https" in first.remedy


async def test_a_server_that_is_not_there_has_one_fault(door: Door) -> None:
    subject = Subject(url="http://127.0.0.1:9/thing")
    checks = [check async for check in examine_server(subject, door.client)]
    assert [check.name for check in checks if check.verdict is Verdict.FAULT] == ["transport"]
