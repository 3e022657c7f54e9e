"""One-time tokens: the holder of one may give one answer to one question, once, in time."""

import hashlib
import hmac
import re
from typing import Final, Literal

from mpp_session.settings import Secret
from mpp_session.wallet.approvals.record import ApprovalError, Record

__all__ = ["AnswerTokens"]

_TOKEN: Final = re.compile("([0-9]{1,12})[.]([0-9a-f]{64})")
_PURPOSE: Final = b"mpp-session approval answer 1"


class AnswerTokens:
    """Makes and checks tokens under a key that is derived from one secret."""

    def __init__(self, secret: Secret) -> None:
        self._key = hmac.digest(secret.reveal().encode(), _PURPOSE, "sha256")

    def make(self, record: Record, verdict: Literal["approve", "deny"]) -> str:
        """Return the token for one answer to a question; it ends with the question."""
        until = int(record.question.answer_by)
        return f"{until}.{self._sign(record, verdict, until)}"

    def require(self, record: Record, verdict: str, token: str, now: float) -> bytes:
        """Return the digest of a token that is right for this answer: take it, so that it is once.

        Raises:
            ApprovalError: It is for another question, other terms or another answer, or late.
        """
        found = _TOKEN.fullmatch(token)
        if found is None:
            raise ApprovalError("Expected the one-time token of this question.")
        until = int(found[1])
        if not hmac.compare_digest(self._sign(record, verdict, until), found[2]):
            raise ApprovalError("The token is for another question or for another answer.")
        if until <= now:
            raise ApprovalError("The token has expired: the question is no longer open.")
        return hashlib.sha256(token.encode()).digest()

    def _sign(self, record: Record, verdict: str, until: int) -> str:
        text = f"{record.id} {record.terms.exact.hex()} {verdict} {until}"
        return hmac.new(self._key, text.encode(), "sha256").hexdigest()
