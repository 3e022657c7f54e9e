"""Issues challenges and recognises their echoes. Nothing is stored (decision 6: an HMAC)."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from channel.engine.offer import Offer
from channel.engine.settings import EngineSettings
from channel.errors import (
    ChallengeExpiredError,
    ChallengeNotFoundError,
    MalformedPayloadError,
    MethodUnsupportedError,
    WireError,
)
from channel.methods.interface import SessionMethod
from channel.types import ChannelId, ChannelKey
from channel.verify.challenge_id import ChallengeBinder
from channel.wire.challenge import (
    INTENT,
    Challenge,
    SessionRequest,
    format_opaque,
    parse_opaque,
)
from channel.wire.credential import Credential
from channel.wire.encoding import encode_base64url, format_timestamp, parse_timestamp
from channel.wire.payload import (
    ClosePayload,
    VoucherPayload,
)

__all__ = ["Authenticated", "Challenger", "read_variant"]

_SCOPE = ("nonce", "http_method", "route", "variant")
_UNITS = "units"


class Authenticated(msgspec.Struct, frozen=True, gc=False):
    """A credential that answers a challenge of this server. Its payload is not verified yet."""

    credential: Credential
    offer: Offer
    asked: SessionRequest
    """The offer as of the challenge: the price in force."""
    key: ChannelKey
    is_expired: bool
    """Only a running stream may send vouchers under an expired challenge (AMB-05)."""
    units: int = 1
    """The price of a fixed-price request in units, as of the challenge."""
    client: bytes = b""
    """The client's address, empty when unknown: what one source may cause is bounded."""

    @property
    def challenge_id(self) -> str:
        """The challenge id for the receipt."""
        return self.credential.challenge.id

    def require_current(self) -> None:
        """Refuse an expired challenge.

        Raises:
            ChallengeExpiredError: It has expired.
        """
        if self.is_expired:
            raise ChallengeExpiredError("The challenge has expired.")


class Challenger:
    """Issues a 402's challenge and decides whether a credential answers one."""

    def __init__(
        self,
        *,
        binder: ChallengeBinder,
        settings: EngineSettings,
        now: Callable[[], float],
        new_id: Callable[[], bytes],
    ) -> None:
        self._binder = binder
        self._settings = settings
        self._now = now
        self._new_id = new_id

    def issue(self, offer: Offer, channel_id: ChannelId | None = None) -> Challenge:
        """Return a challenge for an offer, naming the payer's channel if known (CHAL-15)."""
        asked = offer.request
        if channel_id is not None:
            asked = msgspec.structs.replace(asked, channel_id=channel_id)
        request = _format_request(self._settings.method, asked)
        expires = format_timestamp(self._now() + self._settings.challenge_lifetime_s)
        nonce = encode_base64url(self._new_id())
        scope = zip(_SCOPE, (nonce, *offer.scope), strict=True)
        bound = {name: entry for name, entry in scope if entry}
        if offer.units != 1:
            bound[_UNITS] = str(offer.units)
        opaque = format_opaque(bound)
        header = self._settings.credential_header
        challenge_id = self._binder.bind(
            realm=self._settings.realm,
            method=self._settings.method.name,
            intent=INTENT,
            request=request,
            expires=expires,
            header=header,
            opaque=opaque,
        )
        return Challenge(
            id=challenge_id,
            realm=self._settings.realm,
            method=self._settings.method.name,
            intent=INTENT,
            request=request,
            expires=expires,
            header=header,
            opaque=opaque,
        )

    def authenticate(
        self,
        credential: Credential,
        offers: Sequence[Offer],
        *,
        client: bytes = b"",
        is_sale: bool = True,
    ) -> Authenticated:
        """Return the credential as one that answers this server's challenge for one of `offers`.

        Without `is_sale` the request only manages the channel, such as a voucher for a running
        stream. Its challenge may then be for a variant or for kinds that are not sold any more.

        Order: method and intent, HMAC, realm, field, digest, scope, pinned terms, types.

        Raises:
            MethodUnsupportedError: It is for another method or intent.
            ChallengeNotFoundError: Issued elsewhere, altered, for another route, or expired where
                the channel's state does not matter.
            MalformedPayloadError: Its kind of funding was not offered (CRED-05).
        """
        echo = credential.challenge
        method = self._settings.method
        if echo.method != method.name or echo.intent != INTENT:
            raise MethodUnsupportedError(f"This route takes {method.name}/{INTENT} credentials.")
        if not self._binder.is_bound(echo):
            raise ChallengeNotFoundError("The challenge was not issued here, or was altered.")
        if echo.realm != self._settings.realm or echo.header != self._settings.credential_header:
            raise ChallengeNotFoundError("The challenge is for another realm or field.")
        if echo.digest is not None:  # a session's challenge covers no body (CHAL-11)
            raise ChallengeNotFoundError("The challenge is for one request body.")
        offer = _match_scope(echo.opaque, offers, is_sale=is_sale)
        asked = _read_request(method, echo.request)
        offer.require_pinned(asked, is_sale=is_sale)
        payload = credential.payload
        _require_offered(credential, asked)
        authenticated = Authenticated(
            credential=credential,
            offer=offer,
            asked=asked,
            key=ChannelKey(asked.chain_id, asked.escrow, payload.channel_id),
            is_expired=not self._now() < _read_expiry(echo.expires),
            units=_read_units(echo.opaque),
            client=client,
        )
        if not isinstance(payload, VoucherPayload) or payload.deposit is not None:
            authenticated.require_current()
        return authenticated


def read_variant(opaque: str | None) -> str:
    """Return the variant that a challenge states; empty if none, or if it states no scope."""
    try:
        return _read_scope(opaque)[-1]
    except ChallengeNotFoundError:
        return ""


def _match_scope(opaque: str | None, offers: Sequence[Offer], *, is_sale: bool) -> Offer:
    scope = _read_scope(opaque)
    for offer in offers:
        if offer.scope == scope:
            return offer
    for offer in () if is_sale else offers:
        if offer.scope[:-1] == scope[:-1]:
            return offer
    raise ChallengeNotFoundError("The challenge is for another route.")


def _require_offered(credential: Credential, asked: SessionRequest) -> None:
    payload = credential.payload
    if isinstance(payload, ClosePayload):
        return
    if isinstance(payload, VoucherPayload):
        if payload.deposit is not None and payload.deposit.type not in asked.credential_types:
            raise MalformedPayloadError("payload.deposit.type: not among the credentialTypes.")
        return
    if payload.type not in asked.credential_types:
        raise MalformedPayloadError("payload.type: not among the challenge's credentialTypes.")


# The strings below come from challenges with a checked HMAC: a few strings that repeat.


@lru_cache(maxsize=1024)
def _format_request(method: SessionMethod, asked: SessionRequest) -> str:
    return method.format_request(asked)


@lru_cache(maxsize=8192)
def _read_scope(opaque: str | None) -> tuple[str, ...]:
    try:
        entries = parse_opaque(opaque or "")
    except WireError as error:
        raise ChallengeNotFoundError("The challenge has no scope.") from error
    return tuple([entries.get(name, "") for name in _SCOPE[1:]])


@lru_cache(maxsize=8192)
def _read_units(opaque: str | None) -> int:
    """Return the units of a verified challenge whose scope was read before."""
    return int(parse_opaque(opaque or "").get(_UNITS, "1"))


def _read_request(method: SessionMethod, request: str) -> SessionRequest:
    try:
        return method.parse_request(request)
    except WireError as error:
        raise ChallengeNotFoundError("The challenge's request is not a session's.") from error


@lru_cache(maxsize=8192)
def _read_expiry(expires: str | None) -> float:
    """Return when a challenge expires; one without a time has expired (F-112)."""
    try:
        return parse_timestamp(expires)
    except WireError:
        return 0.0
