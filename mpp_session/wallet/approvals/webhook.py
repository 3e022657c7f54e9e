"""The message that tells people of questions: signed, one for several questions, never repeated."""

import asyncio
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from sqlite3 import Connection
from ssl import SSLContext
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlencode, urlsplit

import httpx
import msgspec

from channel.errors import ConfigError, StoreError
from mpp_session.settings import Secret
from mpp_session.wallet.approvals.record import Record
from mpp_session.wallet.approvals.rules import ApprovalRules
from mpp_session.wallet.approvals.shown import headline, lines
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.approvals.tokens import AnswerTokens

__all__ = ["Announcer", "Transact", "Webhook", "is_genuine", "sign"]

T = TypeVar("T")
_log: Final = logging.getLogger(__name__)

CHANNEL: Final = "webhook"
TIMEOUT_S: Final = 10.0
PAUSES_S: Final = (1.0, 5.0, 30.0, 120.0)
"""Before the second try and each one after it; then the message is given up."""
LOOK_S: Final = 5.0
DAY_S: Final = 24 * 3600
TOGETHER: Final = 20
"""Questions in one message; the next message has the others."""
KEPT_S: Final = 400 * 24 * 3600
"""How long records are kept that have ended, as the books keep what they count."""
FRESH_S: Final = 300
"""How old a message may be when it is checked."""
_AGAIN: Final = frozenset({408, 425, 429})
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Transact(Protocol):
    """Runs a change in one transaction of the wallet's file, as `PaymentStore.transact` does."""

    def __call__(self, change: Callable[[Connection], T], /) -> Awaitable[T]:
        """Return what `change` returns, once it is durable."""


class Webhook:
    """Where messages go, and the secret that both sides share."""

    def __init__(self, url: str, secret: Secret, *, allow_loopback: bool = False) -> None:
        """Check the URL.

        Args:
            url: https. It is taken as it is: no redirect and no proxy of the environment leads
                elsewhere.
            secret: Signs messages and answers.
            allow_loopback: Also take this machine, there also http: for development.

        Raises:
            ConfigError: The URL may not be used.
        """
        self.url = _require_url(url, allow_loopback=allow_loopback)
        self.secret = secret


def sign(secret: Secret, timestamp: str, body: bytes) -> str:
    """Return the value of `x-mpp-signature` for a body that is sent at a time (Unix seconds)."""
    text = timestamp.encode() + b"." + body
    return "sha256=" + hmac.new(secret.reveal().encode(), text, "sha256").hexdigest()


def is_genuine(secret: Secret, *, timestamp: str, signature: str, body: bytes, now: float) -> bool:
    """Return whether a message is the wallet's, unchanged, and new. For receivers in Python."""
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(now - int(timestamp)) > FRESH_S:
        return False
    return hmac.compare_digest(sign(secret, timestamp, body).encode(), signature.encode())


class Announcer:
    """Ends what has passed its time, and sends one message about all that is new."""

    def __init__(
        self,
        approvals: Approvals,
        transact: Transact,
        webhook: Webhook | None,
        *,
        page_url: str,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        verify: SSLContext | bool = True,
    ) -> None:
        """Announce the questions of `approvals`; without a webhook, only end what is over.

        Args:
            approvals: The records.
            transact: Runs a change on them.
            webhook: Where messages go.
            page_url: The page that takes answers, without a slash at its end.
            now: The time, Unix seconds.
            sleep: Waits between looks and between tries.
            verify: How the receiver's certificate is checked.
        """
        self._approvals = approvals
        self._transact = transact
        self._webhook = webhook
        self._page_url = page_url
        self._now = now
        self._sleep = sleep
        self._verify = verify
        self._forgot_at = 0.0
        self._sent: dict[str, str] = {}
        """Questions that were announced, and how it went, until that is stored."""

    async def run(self) -> None:
        """Look every few seconds, until cancelled.

        A look that fails, because the disk is full for example, is done again: if this ended, the
        whole wallet would, for every agent.
        """
        while True:
            try:
                await self.look()
            except StoreError as error:
                _log.error("questions are neither ended nor announced now: %s", error)
            await self._sleep(LOOK_S)

    async def look(self) -> int:
        """End what has passed its time, announce what is new, and return how many are new."""
        found = await self._transact(self._read)
        if self._webhook is not None and found:
            status = await self._send(self._webhook, found)
            self._sent |= {record.id: status for record in found}
        if self._sent:
            await self._transact(self._note_sent)
            self._sent.clear()
        return 0 if self._webhook is None else len(found)

    def _note_sent(self, db: Connection) -> None:
        for name, status in self._sent.items():
            self._approvals.note_sent(db, [name], channel=CHANNEL, status=status, now=self._now())

    def _read(self, db: Connection) -> list[Record]:
        now = self._now()
        self._approvals.expire(db, now)
        if now - self._forgot_at > DAY_S:
            self._approvals.forget(db, now - KEPT_S)
            self._forgot_at = now
        waiting = self._approvals.pending(db)
        new = [each for each in waiting if not each.notices and each.id not in self._sent]
        return new[:TOGETHER]

    async def _send(self, webhook: Webhook, found: Sequence[Record]) -> str:
        """Return how it went, in words."""
        body = _message(found, self._approvals.rules, webhook, self._page_url)
        last = ""
        async with httpx.AsyncClient(
            trust_env=False, follow_redirects=False, timeout=TIMEOUT_S, verify=self._verify
        ) as client:
            for pause_s in (0.0, *PAUSES_S):
                if pause_s:
                    await self._sleep(pause_s)
                last, is_final = await self._try(client, webhook, body)
                if is_final:
                    break
        if last != "sent":
            _log.warning("the message about %d approvals was not delivered: %s", len(found), last)
        return last

    async def _try(
        self, client: httpx.AsyncClient, webhook: Webhook, body: bytes
    ) -> tuple[str, bool]:
        timestamp = str(int(self._now()))
        headers = {
            "content-type": "application/json",
            "x-mpp-timestamp": timestamp,
            "x-mpp-signature": sign(webhook.secret, timestamp, body),
        }
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async with client.stream(
                    "POST", webhook.url, content=body, headers=headers
                ) as answer:  # its body says nothing that is needed, and may have no end
                    status = answer.status_code
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            return f"no answer ({type(error).__name__})", False
        if httpx.codes.is_success(status):
            return "sent", True
        is_final = not httpx.codes.is_server_error(status) and status not in _AGAIN
        return f"answered {status}", is_final


def _message(
    found: Sequence[Record], rules: ApprovalRules, webhook: Webhook, page_url: str
) -> bytes:
    tokens = AnswerTokens(webhook.secret)
    return msgspec.json.encode(
        {
            "type": "approvals",
            "page": page_url,
            "approvals": [_entry(record, rules, tokens, page_url) for record in found],
        }
    )


def _entry(
    record: Record, rules: ApprovalRules, tokens: AnswerTokens, page_url: str
) -> dict[str, Any]:
    question = record.question
    shown = lines(record, rules)
    entry = {
        "id": record.id,
        "question": headline(question, rules),
        "agent": question.agent,
        "amount": str(question.amount),
        "terms_hash": record.terms.exact.hex(),
        "expires_at": int(question.answer_by),
        "facts": [[line.name, line.text] for line in shown if not line.is_agents],
        "untrusted": [[line.name, line.text] for line in shown if line.is_agents],
    }
    return entry | (_answers(record, rules, tokens, page_url) if page_url else {})


def _answers(
    record: Record, rules: ApprovalRules, tokens: AnswerTokens, page_url: str
) -> dict[str, Any]:
    """Return how to answer: to deny, and to approve where one person is enough."""
    answers = {"deny": tokens.make(record, "deny")}
    if rules.quorum == 1:
        answers["approve"] = tokens.make(record, "approve")
    decide = f"{page_url}/approvals/{record.id}/decide"
    return {
        "decide": decide,
        "tokens": answers,
        "links": {
            verdict: f"{decide}?{urlencode({'verdict': verdict, 'token': token})}"
            for verdict, token in answers.items()
        },
    }


def _require_url(url: str, *, allow_loopback: bool) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(f"`approval.webhook.url` is not a URL: {error}") from None
    is_plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    if not (host and is_plain) or parts.fragment or "@" in parts.netloc:
        raise ConfigError(
            "expected `approval.webhook.url` as a URL without a user, a fragment and spaces"
        )
    place = _place(host)
    if place == "elsewhere" and parts.scheme == "https":
        return url
    if place == "here" and allow_loopback and parts.scheme in {"http", "https"}:
        return url
    raise ConfigError(
        f"expected `approval.webhook.url` as https to another machine, found {parts.scheme} to "
        f"{host}: in development `allow_loopback_http` of the policy allows this machine"
    )


def _place(host: str) -> str:
    """Return where a host is: `here`, `elsewhere`, or `nowhere` that a message should go."""
    if host == "localhost" or host.endswith(".localhost"):
        return "here"
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        is_number = _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2])
        return "nowhere" if is_number else "elsewhere"  # 127.1 and 0x7f000001 are this machine
    found = getattr(found, "ipv4_mapped", None) or found
    if found.is_loopback:
        return "here"
    odd = found.is_link_local or found.is_unspecified or found.is_multicast
    return "nowhere" if odd else "elsewhere"
