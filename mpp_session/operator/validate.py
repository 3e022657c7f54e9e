"""Checks any server of MPP from outside, one by one: it is asked as agents and strangers ask it.

`mpp-session validate` shows the result. Nothing is paid here; `validate_paid` pays for one request.
Each check states what it found, the remedy if that is not good, and the requirements that it
stands for (docs/engineering/requirements.md). A check that needs a challenge is skipped where the
server offers none: one cause gives one fault.
"""

import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import httpx
import msgspec
from msgspec.structs import replace

from channel.client.http.transport import is_safe
from channel.errors import ConfigError, WireError
from channel.limits import (
    ANSWER_DEPTH_MAX,
    AUTHORIZATION_BYTES_MAX,
    CHECKED_ANSWER_BYTES_MAX,
    REQUEST_PARAM_BYTES_MAX,
)
from channel.methods.registry import find_method
from channel.wire.challenge import INTENT, SCHEME, Challenge, echo_challenge, parse_challenges
from channel.wire.depth import is_shallow
from channel.wire.encoding import (
    canonical_json,
    decode_base64url,
    encode_base64url,
    parse_address,
    parse_amount,
    parse_json_object,
    parse_timestamp,
)
from channel.wire.problem import OWN_BASE, PROBLEM_BASE, PROBLEM_CONTENT_TYPE, REGISTERED
from channel.wire.x402 import PAYMENT_REQUIRED, parse_payment_required
from mpp_session.operator.doctor import Check, Verdict

__all__ = ["Examined", "Subject", "examine_server"]

_TIMEOUT_S: Final = 20.0
_EXPIRES_S: Final = 24 * 3600
"""A challenge fixes a price: one that holds for longer than a day is a mistake."""
_HEADER_BYTES: Final = 8192
_OVERSIZE: Final = AUTHORIZATION_BYTES_MAX + 1024
_PAGE: Final = "https://page.example"
_RECEIPT: Final = "payment-receipt"
_TRACES: Final = re.compile(
    r"Traceback \(most recent call last\)|File \"[^\"]+\", line \d+"
    r"|\bat [\w.$<>]+ ?\([^)]*:\d+:\d+\)|node_modules/"
    r"|goroutine \d+ \[|panic: |thread '[^']*' panicked|\bat [\w.$]+\([\w]+\.java:\d+\)"
)
"""Of Python, JavaScript, Go, Rust and Java."""
_JSON: Final = "application/json"
_REQUIRED: Final = 402


class Examined(Check, frozen=True):
    """One check of a server, and the requirements that it stands for."""

    requirements: tuple[str, ...] = ()


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The request that the server sells."""

    url: str
    method: str = "GET"
    content: bytes | None = None
    headers: Mapping[str, str] = {}

    def headers_with(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the headers to send."""
        body = {} if self.content is None else {"content-type": _JSON}
        return {**body, **self.headers, **(more or {})}


class _FaultError(Exception):
    """What a check found is not good."""

    def __init__(self, found: str, remedy: str, verdict: Verdict = Verdict.FAULT) -> None:
        super().__init__(found)
        self.found = found
        self.remedy = remedy
        self.verdict = verdict


class _SkipError(Exception):
    """There is nothing to look at."""


class _Server:
    """Sends requests, and keeps what every answer showed."""

    def __init__(self, client: httpx.AsyncClient, subject: Subject) -> None:
        self._client = client
        self.subject = subject
        self.offers: tuple[Challenge, ...] = ()
        self.unpaid: httpx.Response
        self.leaks: list[str] = []
        self.receipts: list[str] = []

    async def ask(
        self,
        more: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        *,
        method: str | None = None,
        path: str | None = None,
    ) -> httpx.Response:
        """Send the request, or another one to the same server, without payment."""
        subject = self.subject
        is_other = path is not None or method is not None
        headers = [("accept-encoding", "identity")]
        headers += subject.headers_with().items() if path is None else []
        headers += [*(more.items() if isinstance(more, Mapping) else more)]
        url = httpx.URL(subject.url) if path is None else httpx.URL(subject.url).join(path)
        content = None if is_other else subject.content
        request = self._client.build_request(
            method or ("GET" if path is not None else subject.method),
            url,
            headers=headers,
            content=content,
        )
        response = await self._client.send(request, stream=True)
        try:
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > CHECKED_ANSWER_BYTES_MAX:
                    break
        finally:
            await response.aclose()
        whole = httpx.Response(response.status_code, headers=_plain(response), content=bytes(body))
        self._look(whole, f"{request.method} {url.path}")
        return whole

    def _look(self, response: httpx.Response, what: str) -> None:
        shown = response.text + " ".join(response.headers.values())
        found = _TRACES.search(shown)
        if found is not None:
            self.leaks.append(f"{what} answers {response.status_code} with {found[0][:60]!r}")
        if _RECEIPT in response.headers and not response.is_success:
            self.receipts.append(f"{what} answers {response.status_code}")

    @property
    def offer(self) -> Challenge:
        """The offer that the checks of credentials use: the first session, or the first."""
        return next((one for one in self.offers if one.intent == INTENT), self.offers[0])


_Look = Callable[[_Server], Awaitable[str]]


async def examine_server(
    subject: Subject, client: httpx.AsyncClient | None = None
) -> AsyncIterator[Examined]:
    """Yield the checks of a server, in the order in which to mend faults. Pays nothing.

    `client` sends the requests, without following redirects; one of its own if None.
    """
    if client is None:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S) as own:
            async for check in examine_server(subject, own):
                yield check
        return
    server = _Server(client, subject)
    failed = ""
    for name, requirements, look in (*_FIRST, *_REST):
        if failed:
            yield Examined(name, Verdict.SKIPPED, f"{failed} failed", requirements=requirements)
            continue
        check = await _run(server, name, requirements, look)
        yield check
        if check.verdict is Verdict.FAULT and look in _NEEDED:
            failed = name


async def _run(server: _Server, name: str, requirements: tuple[str, ...], look: _Look) -> Examined:
    try:
        found, remedy, verdict = await look(server), "", Verdict.OK
    except _SkipError as skipped:
        found, remedy, verdict = str(skipped), "", Verdict.SKIPPED
    except _FaultError as fault:
        found, remedy, verdict = fault.found, fault.remedy, fault.verdict
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        found = f"no answer: {error or type(error).__name__}"
        remedy = "the server must answer every request, also one that it refuses"
        verdict = Verdict.FAULT
    return Examined(name, verdict, found, remedy, requirements)


async def _transport(server: _Server) -> str:
    url = httpx.URL(server.subject.url)
    if not is_safe(url, allow_loopback_http=True):
        raise _FaultError(
            f"{url.scheme} is not encrypted", "serve it by https: clients send no payment otherwise"
        )
    answer = await server.ask()
    if answer.is_redirect:
        raise _FaultError(
            f"it redirects to {answer.headers.get('location', '')[:200]}",
            "publish the address that answers: clients pay nothing on another origin",
        )
    server.unpaid = answer
    return url.scheme if url.scheme == "https" else "http on this machine"


async def _unpaid(server: _Server) -> str:
    answer = server.unpaid
    if answer.status_code != _REQUIRED:
        raise _FaultError(
            f"{server.subject.method} without payment gets {answer.status_code}",
            "answer 402, or name what is sold by --method and --body",
        )
    server.offers = _challenges(answer)
    names = ", ".join(f"{one.method} {one.intent}" for one in server.offers)
    return f"402, offers {names}"


def _challenges(answer: httpx.Response) -> tuple[Challenge, ...]:
    lines = answer.headers.get_list("www-authenticate")
    try:
        found = parse_challenges(lines)
    except WireError as error:
        raise _FaultError(
            f"a challenge cannot be read: {error}",
            "send `WWW-Authenticate: Payment` with id, realm, method, intent and request",
        ) from None
    if not found:
        raise _FaultError(
            "402 without a challenge",
            "add `WWW-Authenticate: Payment`; one line for each offer",
        )
    return found


async def _challenge(server: _Server) -> str:
    lines = server.unpaid.headers.get_list("www-authenticate")
    size = sum(map(len, lines))
    if size > _HEADER_BYTES:
        raise _FaultError(
            f"{size} bytes of challenges",
            f"keep them within {_HEADER_BYTES}: servers in between drop longer heads",
        )
    shown = []
    for one in server.offers:
        try:
            shown.append(_read_request(one))
        except (WireError, ConfigError) as error:
            raise _FaultError(
                f"the request of {one.method} {one.intent} is wrong: {error}",
                "send base64url of canonical JSON with amount, currency, recipient and chain",
            ) from None
    return "; ".join(shown)


def _read_request(challenge: Challenge) -> str:
    """Return what a challenge asks, in a few words.

    Raises:
        WireError: It cannot be read; the message names the field.
    """
    raw = decode_base64url(challenge.request)
    wire = parse_json_object(raw, bytes_max=REQUEST_PARAM_BYTES_MAX)
    if canonical_json(wire) != raw:
        raise WireError("it is not the canonical form of its JSON (RFC 8785)")
    amount = _field(wire, "amount", parse_amount)
    if amount <= 0:
        raise WireError("amount: expected more than 0")
    _field(wire, "currency", parse_address)
    _field(wire, "recipient", parse_address)
    details = wire.get("methodDetails")
    chain = details.get("chainId") if isinstance(details, dict) else None
    if type(chain) is not int or chain <= 0:
        raise WireError("methodDetails.chainId: expected a whole number above 0")
    if challenge.intent == INTENT:
        try:
            find_method(challenge.method).parse_request(challenge.request)
        except ConfigError:  # of another project: what all sessions have, it has
            _field(details, "escrowContract", parse_address)
    return f"{amount} of 0x{parse_address(wire['currency']).hex()[:8]}... on chain {chain}"


def _field(wire: Any, name: str, parse: Callable[[object], Any]) -> Any:
    try:
        return parse(wire.get(name))
    except WireError as error:
        raise WireError(f"{name}: {error}") from None


async def _expires(server: _Server) -> str:
    now, left = time.time(), []
    for one in server.offers:
        remedy = "send `expires` as an RFC 3339 time with its offset, some minutes ahead"
        try:
            until = parse_timestamp(one.expires)
        except WireError as error:
            raise _FaultError(f"expires {one.expires!r}: {error}", remedy) from None
        if until <= now:
            raise _FaultError(
                f"a fresh challenge has expired: {one.expires}",
                "set the clocks of server and this machine: timedatectl set-ntp true",
            )
        if until > now + _EXPIRES_S:
            raise _FaultError(f"a challenge holds until {one.expires}", remedy)
        left.append(f"{until - now:.0f} s")
    return f"in {', '.join(left)}"


async def _ids(server: _Server) -> str:
    again = _challenges(await server.ask())
    before = {one.id for one in server.offers}
    if before & {one.id for one in again} or len(before) < len(server.offers):
        raise _FaultError(
            "two challenges have one id",
            "put a random nonce into `opaque`, and bind the id to every parameter",
        )
    return "each challenge has an id of its own"


async def _head(server: _Server) -> str:
    answer = await server.ask(method="HEAD")
    if answer.status_code != _REQUIRED:
        raise _FaultError(
            f"HEAD gets {answer.status_code}",
            "answer HEAD as the method that is sold: vouchers travel by it beside a stream",
        )
    _challenges(answer)
    return "402 with a challenge"


async def _cache(server: _Server) -> str:
    control: str = server.unpaid.headers.get("cache-control", "")
    if "no-store" not in control.lower():
        raise _FaultError(
            f"402 with Cache-Control {control!r}",
            "send `Cache-Control: no-store`: a cache would hand on expired challenges",
        )
    return control


async def _problem(server: _Server) -> str:
    return f"type {_read_problem(server.unpaid, what='the 402')}"


def _read_problem(answer: httpx.Response, *, what: str) -> str:
    remedy = "send application/problem+json with type, title, status and detail (RFC 9457)"
    media = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != PROBLEM_CONTENT_TYPE:
        raise _FaultError(f"{what} has content type {media or 'none'}", remedy)
    try:
        wire = parse_json_object(answer.content)
    except WireError as error:
        raise _FaultError(f"the problem of {what} cannot be read: {error}", remedy) from None
    kind, status = wire.get("type"), wire.get("status")
    name = kind.removeprefix(PROBLEM_BASE) if isinstance(kind, str) else ""
    if not isinstance(kind, str) or (name not in REGISTERED and not kind.startswith(OWN_BASE)):
        raise _FaultError(f"{what} has the problem type {kind!r}, which no draft names", remedy)
    if status != answer.status_code:
        raise _FaultError(
            f"{what} states status {status} in an answer {answer.status_code}", remedy
        )
    for member in ("title", "detail"):
        if not isinstance(wire.get(member), str) or not wire[member]:
            raise _FaultError(f"{what} has no {member}", remedy)
    return name


async def _refuses(server: _Server, headers: Sequence[tuple[str, str]], what: str) -> str:
    """Send a credential that must be refused, by a problem and with a fresh challenge."""
    answer = await server.ask(headers)
    remedy = "refuse it with 402 (or 400), a problem and a fresh challenge"
    if not 400 <= answer.status_code < 500:  # noqa: PLR2004
        raise _FaultError(f"{what} gets {answer.status_code}", remedy)
    name = _read_problem(answer, what=f"the answer to {what}")
    if answer.status_code == _REQUIRED and not _challenges(answer):
        raise _FaultError(f"{what} gets no fresh challenge", remedy)
    return f"{answer.status_code} {name}"


def _credential(challenge: Challenge, field: str = "") -> tuple[str, str]:
    """Return a header with a well-formed credential without a valid signature."""
    payload = {
        "action": "voucher",
        "channelId": f"0x{secrets.token_hex(32)}",
        "cumulativeAmount": "1",
        "signature": f"0x{'11' * 64}1b",
    }
    wire = msgspec.json.encode({"challenge": echo_challenge(challenge), "payload": payload})
    return field or _header(challenge), f"{SCHEME} {encode_base64url(wire)}"


def _header(challenge: Challenge) -> str:
    return challenge.header or "Authorization"


async def _malformed(server: _Server) -> str:
    found = []
    for text in ("%%%", encode_base64url(b"[1"), encode_base64url(b"{}")):
        header = (_header(server.offer), f"{SCHEME} {text}")
        found.append(await _refuses(server, [header], "a malformed credential"))
    return ", ".join(dict.fromkeys(found))


async def _unknown(server: _Server) -> str:
    strange = replace(server.offer, id=encode_base64url(secrets.token_bytes(32)))
    return await _refuses(server, [_credential(strange)], "a challenge that it did not issue")


async def _altered(server: _Server) -> str:
    wire = parse_json_object(decode_base64url(server.offer.request))
    cheaper = encode_base64url(canonical_json({**wire, "amount": "0"}))
    altered = replace(server.offer, request=cheaper)
    return await _refuses(server, [_credential(altered)], "a challenge with another price")


async def _expired(server: _Server) -> str:
    old = replace(server.offer, expires="2020-01-01T00:00:00Z")
    return await _refuses(server, [_credential(old)], "an expired challenge")


async def _unsigned(server: _Server) -> str:
    return await _refuses(server, [_credential(server.offer)], "a voucher of no channel")


async def _oversize(server: _Server) -> str:
    answer = await server.ask([(_header(server.offer), f"{SCHEME} {'A' * _OVERSIZE}")])
    if not 400 <= answer.status_code < 500:  # noqa: PLR2004
        raise _FaultError(
            f"a credential of {_OVERSIZE} bytes gets {answer.status_code}",
            "refuse it by its length, before it is decoded",
        )
    return str(answer.status_code)


async def _twice(server: _Server) -> str:
    one, other = _credential(server.offer), _credential(server.offer)
    answer = await server.ask([one, other])
    if not 400 <= answer.status_code < 500:  # noqa: PLR2004
        raise _FaultError(
            f"two credentials in a request get {answer.status_code}", "refuse them with 400"
        )
    return str(answer.status_code)


async def _preference(server: _Server) -> str:
    offer = server.offer
    for value in (f"{offer.method}/{offer.intent}", "unknown/nothing", ";;;"):
        answer = await server.ask({"Accept-Payment": value})
        if answer.status_code != _REQUIRED:
            raise _FaultError(
                f"Accept-Payment: {value} gets {answer.status_code}",
                "offer all where nothing matches: a 402 always has a challenge",
            )
        names = {(one.method, one.intent) for one in _challenges(answer)}
        if (offer.method, offer.intent) not in names:
            raise _FaultError(
                f"Accept-Payment: {value} does not get {offer.method} {offer.intent}",
                "keep what the client names, and offer all where nothing matches",
            )
    others = {(one.method, one.intent) for one in server.offers} - {(offer.method, offer.intent)}
    if others:
        method, intent = min(others)
        answer = await server.ask({"Accept-Payment": f"{method}/{intent}, */*;q=0"})
        left = {(one.method, one.intent) for one in _challenges(answer)}
        if left != {(method, intent)}:
            raise _FaultError(
                f"it offers {len(left)} ways to a client that takes {method} {intent} alone",
                "leave out what the client gives q=0",
                Verdict.ADVICE,
            )
    return "respected"


async def _x402(server: _Server) -> str:
    text = server.unpaid.headers.get(PAYMENT_REQUIRED)
    if text is None:
        raise _SkipError("offers none")
    try:
        found = parse_payment_required(text)
    except WireError as error:
        raise _FaultError(
            f"{PAYMENT_REQUIRED} cannot be read: {error}",
            "send base64 of the x402 version 2 object",
        ) from None
    return ", ".join(one.name for one in found)


async def _openapi(server: _Server) -> str:
    answer = await server.ask(path="/openapi.json")
    if not answer.is_success:
        raise _SkipError(f"/openapi.json gets {answer.status_code}")
    remedy = (
        "publish what the challenges ask: `sell(..., discovery=True)` does, and `mpp-session "
        "discovery openapi` prints such a document"
    )
    document = _decode(answer.content)
    if not isinstance(document, dict):
        raise _FaultError("/openapi.json cannot be read as a JSON object", remedy)
    operation = _find_operation(document, server.subject)
    if operation is None:
        raise _FaultError(
            f"/openapi.json has no {server.subject.method} {httpx.URL(server.subject.url).path}",
            remedy,
        )
    offers = _listed(operation)
    if not offers:
        raise _FaultError("the operation has no x-payment-info with offers", remedy)
    if "402" not in (operation.get("responses") or {}):
        raise _FaultError("the operation has no response 402", remedy)
    for one in server.offers:
        wire = parse_json_object(decode_base64url(one.request))
        if not any(_agrees(offer, one, wire) for offer in offers):
            raise _FaultError(
                f"x-payment-info does not offer {one.method} {one.intent} for {wire['amount']} of "
                f"{wire['currency']}, which the challenge asks",
                remedy,
            )
    return f"{len(offers)} offers agree with the challenge"


def _decode(text: bytes) -> object:
    """Return the value of a JSON text; None if it cannot be read."""
    if len(text) > CHECKED_ANSWER_BYTES_MAX or not is_shallow(text, ANSWER_DEPTH_MAX):
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


def _find_operation(document: Mapping[str, Any], subject: Subject) -> dict[str, Any] | None:
    path, paths = httpx.URL(subject.url).path, document.get("paths")
    if not isinstance(paths, dict):
        return None
    for template, operations in paths.items():
        pattern = re.sub(r"\\\{[^/]+?\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(f"(?:{pattern})", path) and isinstance(operations, dict):
            operation = operations.get(subject.method.lower())
            if isinstance(operation, dict):
                return operation
    return None


def _listed(operation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    info = operation.get("x-payment-info")
    if not isinstance(info, dict):
        return []
    offers = info.get("offers", [info])  # a single offer is allowed to stand alone
    return [one for one in offers if isinstance(one, dict)] if isinstance(offers, list) else []


def _agrees(offer: Mapping[str, Any], challenge: Challenge, wire: Mapping[str, Any]) -> bool:
    currency = offer.get("currency")
    return (
        (offer.get("method"), offer.get("intent")) == (challenge.method, challenge.intent)
        and offer.get("amount") in (None, wire["amount"])
        and (currency is None or str(currency).lower() == str(wire["currency"]).lower())
    )


async def _llms(server: _Server) -> str:
    answer = await server.ask(path="/llms.txt")
    if not answer.is_success:
        raise _SkipError(f"/llms.txt gets {answer.status_code}")
    media = answer.headers.get("content-type", "")
    if not media.startswith(("text/plain", "text/markdown")) or not answer.text.startswith("# "):
        raise _FaultError(
            f"/llms.txt is {media or 'of no type'} and begins with {answer.text[:20]!r}",
            "serve Markdown as text that begins with `# `, or nothing",
        )
    return f"{len(answer.content)} bytes"


async def _cors(server: _Server) -> str:
    answer = await server.ask({"Origin": _PAGE})
    if "access-control-allow-origin" not in answer.headers:
        raise _SkipError("no web page may read the answers")
    exposed = answer.headers.get("access-control-expose-headers", "").lower()
    names = {name.strip() for name in exposed.split(",")}
    missing = {"www-authenticate", _RECEIPT} - names
    if missing and "*" not in names:
        raise _FaultError(
            f"pages may read the answer, and not {', '.join(sorted(missing))}",
            "add them to Access-Control-Expose-Headers",
        )
    return "pages may read challenges and receipts"


async def _leaks(server: _Server) -> str:
    if server.leaks:
        raise _FaultError(server.leaks[0], "switch the debug pages off, and answer with problems")
    return "no stack trace in any answer"


async def _receipts(server: _Server) -> str:
    if server.receipts:
        raise _FaultError(
            f"{server.receipts[0]} with a Payment-Receipt", "send receipts with 2xx answers alone"
        )
    return "none on a refusal"


_FIRST: Final[tuple[tuple[str, tuple[str, ...], _Look], ...]] = (
    ("transport", ("CORE-13", "CLIENT-10"), _transport),
    ("unpaid request", ("CORE-01", "CORE-02", "CORE-08", "CORE-09", "CHAL-01"), _unpaid),
    ("challenge", ("CHAL-02", "CHAL-03", "CORE-12", "CORE-14"), _challenge),
)
_NEEDED: Final = frozenset(look for _, _, look in _FIRST)
"""Without these there is nothing to look at further."""
_REST: Final[tuple[tuple[str, tuple[str, ...], _Look], ...]] = (
    ("expiry", ("CHAL-07",), _expires),
    ("ids", ("CHAL-05", "CHAL-10"), _ids),
    ("HEAD", ("RESP-03",), _head),
    ("caching", ("CORE-06",), _cache),
    ("problem", ("ERR-01", "ERR-03"), _problem),
    ("malformed credential", ("CORE-03",), _malformed),
    ("unknown challenge", ("CHAL-05",), _unknown),
    ("altered challenge", ("CHAL-05", "CHAL-06"), _altered),
    ("expired challenge", ("CHAL-07",), _expired),
    ("unsigned voucher", ("VCH-05", "ERR-02"), _unsigned),
    ("oversize credential", ("CORE-14",), _oversize),
    ("two credentials", ("CORE-10",), _twice),
    ("Accept-Payment", ("CORE-11",), _preference),
    ("x402", (), _x402),
    ("openapi", ("DISC-01", "DISC-02", "DISC-03", "DISC-04"), _openapi),
    ("llms.txt", ("DISC-05",), _llms),
    ("CORS", ("DISC-06",), _cors),
    ("leaks", ("SEC-11",), _leaks),
    ("receipts", ("CORE-07",), _receipts),
)


def _plain(response: httpx.Response) -> list[tuple[str, str]]:
    """Return the headers of a body that was read as it came: `identity` was asked for."""
    return [
        (name, value)
        for name, value in response.headers.multi_items()
        if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
    ]
