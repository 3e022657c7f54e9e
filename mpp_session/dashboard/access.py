"""Who may use the dashboard: a log-in token, a signed cookie, and a token for each form.

The cookie states when it expires and is signed with a key derived from the log-in token. Nothing is
stored: a restart keeps sessions, and a new token ends all of them.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Final

from channel.engine import RateLimiter
from channel.limits import LOGIN_TRIES_MAX
from mpp_session.settings import Secret

__all__ = ["LOGIN_TRIES_PERIOD_S", "SESSION_S", "Access"]

SESSION_S: Final = 12 * 3600
LOGIN_TRIES_PERIOD_S: Final = 60

_PARTS: Final = 3
_EVERYONE: Final = b""


class Access:
    """Checks log-in tokens, sessions and forms against one token."""

    def __init__(self, token: Secret, *, now: Callable[[], float] = time.time) -> None:
        self._token = _digest(token.reveal())
        self._key = hmac.digest(token.reveal().encode(), b"mpp-session dashboard", "sha256")
        self._now = now
        self._tries = RateLimiter(
            LOGIN_TRIES_MAX, now, period_s=LOGIN_TRIES_PERIOD_S, what="log-ins with a wrong token"
        )

    def admits(self, token: str) -> bool:
        """Return whether a log-in token is right, in constant time.

        Raises:
            TooManyRequestsError: Too many wrong tokens came lately; this one was not looked at.
        """
        self._tries.check(_EVERYONE)
        if hmac.compare_digest(_digest(token), self._token):
            return True
        self._tries.require(_EVERYONE)
        return False

    def begin(self) -> str:
        """Return a new session, for a cookie."""
        claims = f"{int(self._now()) + SESSION_S}.{secrets.token_urlsafe(16)}"
        return f"{claims}.{self._sign('session', claims)}"

    def knows(self, session: str) -> bool:
        """Return whether a session was begun here and has not expired."""
        parts = session.split(".")
        if len(parts) != _PARTS or not session.isascii():
            return False
        expires_at, nonce, signature = parts
        if not hmac.compare_digest(self._sign("session", f"{expires_at}.{nonce}"), signature):
            return False
        return int(expires_at) > self._now()

    def form_token(self, session: str) -> str:
        """Return the token that a form of this session must send back."""
        return self._sign("form", session)

    def is_form(self, session: str, token: str) -> bool:
        """Return whether a form was made for this session, in constant time."""
        return hmac.compare_digest(_digest(self.form_token(session)), _digest(token))

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose} {text}".encode(), "sha256").hexdigest()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
