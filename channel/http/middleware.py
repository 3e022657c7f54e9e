"""The gate: it serves a priced request only when the request pays.

Pure ASGI, without buffering (F-59). The cheap checks come first: size and form of the credential,
the HMAC of its challenge, its signature, the ledger, and then the handler (CRED-06, F-99).
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Final

from starlette.requests import ClientDisconnect

from channel.engine import Authenticated, Engine, RateLimiter
from channel.engine.challenger import read_variant
from channel.errors import (
    BadRequestError,
    ConfigError,
    InsufficientBalanceError,
    InvariantError,
    MethodNotSoldError,
    OperatorError,
    PaymentRequiredError,
    PeerError,
    ProblemError,
    TooManyRequestsError,
)
from channel.http.answering import Answer
from channel.http.asgi import (
    PROBLEM_HEADERS,
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    denying_send,
    private_send,
    send_empty,
    send_problem,
    send_refusal,
    send_stored,
    without_body,
)
from channel.http.bodies import BodyBounds
from channel.http.hooks import HookCalls, Hooks
from channel.http.metering import METER, Meter
from channel.http.pricing import VARIANT, WEBSOCKET, Priced, Route, RouteTable
from channel.http.rails import Charged, RailOffer, RailRequest, Rails
from channel.http.refusals import (
    PAGE_HEADERS,
    describe_price,
    explain,
    format_page,
    wants_page,
)
from channel.http.request import (
    ClientGoneError,
    RequestBody,
    brings_deposit,
    has_alternate_field,
    is_management,
    is_preflight,
    read_accept,
    read_client,
    read_credential,
    read_fields,
    read_idempotency_key,
    read_preference,
    require_no_override,
)
from channel.http.running import RequestLimits, RunningRequests
from channel.http.tarpit import Tarpit
from channel.http.telling import RequestTeller
from channel.http.websocket import (
    FOREIGN,
    TOLERATED,
    UNPAID,
    PaidWebSocket,
    framing_send,
    read_first_frame,
)
from channel.http.websocket_meter import SocketMeter
from channel.limits import (
    AUTHORIZATION_S_MAX,
    BODY_S_MAX,
    CREDENTIALS_REFUSED_MAX,
    FAILED_REQUESTS_MAX,
    FAILED_REQUESTS_PERIOD_S,
    IDEMPOTENCY_LIFETIME_S,
    REQUEST_BYTES_MAX,
    STREAM_PAUSE_S_MAX,
)
from channel.state.charges import ChargeOutcome
from channel.state.commands import StreamPolicy
from channel.state.requests import RequestClaim
from channel.tasks import RequestMark
from channel.types import Address, TokenUnit
from channel.wire.accept_payment import rank_offers
from channel.wire.challenge import INTENT, Challenge, format_challenge
from channel.wire.credential import Credential
from channel.wire.problem import PAYMENT_REQUIRED, format_problem
from channel.wire.receipt import Receipt
from channel.wire.websocket import COUNTED_KINDS, SUBPROTOCOL

__all__ = ["PaymentGate"]

_log = logging.getLogger(__name__)

_LAYERS_MAX: Final = 32
_UNCOUNTED: Final = nullcontext()
_STATES: Final = frozenset({402, 409, 410})
"""The state of the payer or of the ledger, which the next request may change."""
_FAULTS: Final = frozenset(range(400, 500)) - _STATES - {425, 429}
"""Permanent faults of the client."""


def _stop_worker() -> None:
    """Ask this process to end, because it may not use its ledger any more."""
    signal.raise_signal(signal.SIGTERM)


class PaymentGate:
    """ASGI middleware that sells the given routes and lets everything else through.

    app.add_middleware(PaymentGate, engine=engine, routes=[
        Route(method="GET", path="/joke", price=Price(unit_price=100, unit_type="joke")),
    ])
    """

    def __init__(  # noqa: PLR0913 -- its parts and settings, by name
        self,
        app: ASGIApp,
        *,
        engine: Engine,
        routes: Sequence[Route],
        pause_s: float = STREAM_PAUSE_S_MAX,
        body_timeout_s: float = BODY_S_MAX,
        ready: Callable[[], Awaitable[None] | None] | None = None,
        unit: TokenUnit | None = None,
        hooks: Hooks | None = None,
        limits: RequestLimits | None = None,
        rails: Rails | None = None,
        stop_worker: Callable[[], None] = _stop_worker,
    ) -> None:
        """Wrap `app`.

        `stop_worker` is called once the ledger can no longer be used. `body_timeout_s` is how long
        a paid request's body may take to arrive.

        `ready` is called before anything is sold and before a deposit is asked for or accepted. An
        error of `channel.errors` that it raises is the answer. Separate vouchers and closes, and
        the HEAD request before them, do not call it.

        `unit` is the token's symbol and decimals: prices may then be texts such as
        `"0.40 / 1M"`, and refusals quote them so.

        `limits` bounds how many paid requests run and begin; None bounds neither.

        `rails` take other payments for routes with a price known in advance.

        `hooks` hear what happens to each request for a priced path: see `channel.http.hooks`.

        Raises:
            ConfigError: See `RouteTable`.
        """
        self.app = app
        self.engine = engine
        self.pause_s = pause_s
        self._roots = _find_roots(app)
        self.table = RouteTable(routes, engine, roots=self._roots, unit=unit)
        self.tarpit = Tarpit(engine.now)
        self.body_timeout_s = body_timeout_s
        self.bodies = BodyBounds()
        self.running = None if limits is None else RunningRequests(limits, engine.now)
        self.failed = RateLimiter(
            FAILED_REQUESTS_MAX,
            engine.now,
            period_s=FAILED_REQUESTS_PERIOD_S,
            what=f"requests that bought nothing in {FAILED_REQUESTS_PERIOD_S} s",
        )
        self.ready = ready
        self.unit = unit
        self.rails = rails
        self.calls = HookCalls(hooks)
        self._stop_worker = stop_worker
        self._is_broken = False

    def replace_routes(self, routes: Sequence[Route]) -> None:
        """Sell these routes from now on. Running requests keep theirs, and their prices.

        Raises:
            ConfigError: See `RouteTable`; then nothing changes.
        """
        self.table = RouteTable(routes, self.engine, roots=self._roots, unit=self.unit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass on one without a price."""
        if self.engine.settings.credential_header is not None and has_alternate_field(scope):
            send = private_send(send)
        try:
            is_http = scope["type"] == "http"
            priced = self.table.match(scope) if is_http else self._match_other(scope)
        except ProblemError as error:  # for example of a price that depends on the request
            if scope["type"] not in ("http", "websocket"):
                raise
            if self.calls.refusal:
                teller = RequestTeller(self.calls, self.engine.new_id(), None, self.engine.now)
                teller.refused(error, ())
            if scope["type"] == "websocket":
                await receive()  # its `websocket.connect`
                await send_problem(denying_send(scope, send, FOREIGN), error, ())
            else:
                await send_problem(send, error, (), is_head=scope["method"] == "HEAD")
            return
        if not priced:
            await self.app(scope, receive, send)
            return
        kind = _Exchange if is_http else _SocketExchange
        exchange = kind(self, scope, receive, send, priced)
        if self._is_broken:
            await exchange.refuse(_broken())
            return
        mark = RequestMark(exchange.request_id)
        try:
            await exchange.run()
            mark.end()
        except InvariantError as error:
            # A bug, or a failed disk. The ledger accepts no more, and acknowledged nothing.
            _log.critical("this worker stops: %s", error, exc_info=True)
            self._is_broken = True
            self._stop_worker()
            if not exchange.has_started:
                await exchange.refuse(_broken())

    def _match_other(self, scope: Scope) -> Sequence[Priced]:
        """Return the prices of a connection other than HTTP; none where it is free."""
        kind = scope["type"]
        if kind == "websocket":
            return self.table.match_websocket(scope)
        if "path" in scope and self.table.sells(scope):
            raise ConfigError(f"expected http or websocket on a path with a price, found {kind}")
        return ()


def _find_roots(app: ASGIApp) -> set[str]:
    """Return the application's own root paths, as of `FastAPI(root_path="/api")`.

    Such an application also answers `/api/joke` as `/joke`. The server's own root path is in every
    scope. In Quart and Flask `root_path` is a directory, which is harmless here.
    """
    roots = set()
    layer: object = app
    for _ in range(_LAYERS_MAX):
        root = getattr(layer, "root_path", None)
        if isinstance(root, str) and root:
            roots.add(root.rstrip("/"))
        layer = getattr(layer, "app", None)
    return roots - {""}


def _broken() -> OperatorError:
    return OperatorError("This worker has stopped taking payments.")


class _Exchange:
    """One request for a priced path, from its credential to its answer."""

    def __init__(
        self,
        gate: PaymentGate,
        scope: Scope,
        receive: Receive,
        send: Send,
        priced: Sequence[Priced],
    ) -> None:
        self.has_started = False
        self._gate = gate
        self._engine = gate.engine
        self._rails = gate.rails
        self._scope = scope
        self._body = RequestBody(receive)
        self._send = send
        self._priced = priced
        # ASGI requires upper case, but some servers do not comply and some frameworks accept it.
        self._method: str = scope["method"].upper()
        self._fields = read_fields(scope["headers"])
        self._own: Priced | None = None
        for one in priced:
            if one.route.method == self._method:
                self._own = one
                break
        self.request_id = gate.engine.new_request_id()
        """The id of its reservation, if it gets one."""
        self._teller = None
        if gate.calls:
            one = self._own or priced[0]
            self._teller = RequestTeller(gate.calls, self.request_id, one, gate.engine.now)
        self._credential: Credential | None = None
        self._is_proven = False
        """Whether the payer's voucher is verified, and its body is being read."""

    async def run(self) -> None:
        try:
            await self._run()
        except ProblemError as error:
            if self.has_started:
                raise
            await self.refuse(error)
        except ClientGoneError:
            return

    async def _run(self) -> None:
        raw = read_credential(self._fields, self._engine.settings.credential_header)
        rails = self._rails
        if rails is not None and self._method != "HEAD" and rails.takes(self._scope, raw):
            await self._serve_by(rails, raw)
            return
        if raw is None:
            if self._own is None and self._method != "HEAD":
                await self._pass_on()
                return
            require_no_override(self._fields, self._method)
            if self._method != "HEAD":  # HEAD may come before a close, which must always work
                await self._require_ready()
            raise PaymentRequiredError("This resource must be paid for.")
        credential = self._credential = self._engine.settings.method.parse_credential(raw)
        if self._teller is not None:
            self._teller.presents(credential)
        query: bytes = self._scope.get("query_string", b"")
        if is_management(self._method, self._fields, query, credential.payload):
            if brings_deposit(credential.payload):
                await self._require_ready()
            await self._manage(credential)
        elif self._own is None:
            await self._pass_on()
        else:
            require_no_override(self._fields, self._method)
            await self._require_ready()
            await self._serve(credential, self._own)

    async def _require_ready(self) -> None:
        if self._gate.ready is not None:
            asking = self._gate.ready()
            if asking is not None:
                await asking

    async def _pass_on(self) -> None:
        """Serve a method without a price, if it is listed as free.

        Raises:
            MethodNotSoldError: It is not listed; a handler may answer it like a priced one.
            BadRequestError: A header field asks the application for another method.
        """
        require_no_override(self._fields, self._method)
        is_probe = self._method == "GET" and self._credential is None
        if is_probe and any(one.route.method == WEBSOCKET for one in self._priced):
            raise PaymentRequiredError("A websocket on this path must be paid for.")
        if self._gate.table.is_free(self._scope, self._method):
            await self._gate.app(self._scope, self._body.receive, self._send)
        elif self._method == "OPTIONS" and is_preflight(self._fields):
            await self._gate.app(self._scope, self._body.receive, without_body(self._send))
        else:
            raise MethodNotSoldError(self._method, self._gate.table.methods(self._scope))

    async def _manage(self, credential: Credential) -> None:
        """Do what the credential asks; the handler is not called (F-12, F-13)."""
        variant = read_variant(credential.challenge.opaque)
        if variant and any(callable(one.route.price) for one in self._priced):
            self._priced = self._gate.table.match({**self._scope, VARIANT: variant})
        await send_empty(self._send, await self._perform(credential))

    async def _perform(self, credential: Credential) -> Receipt:
        """Do what a credential asks that pays for no answer; return its receipt."""
        offers = [one.offer for one in self._priced]
        client = read_client(self._scope)
        paid = self._engine.challenger.authenticate(
            credential, offers, client=client, is_sale=False
        )
        outcome = await self._engine.perform(paid)
        if self._teller is not None:
            self._teller.accepted(paid, outcome)
            self._teller.managed(paid, outcome)
        return self._engine.receipt(paid, outcome)

    async def _serve(self, credential: Credential, own: Priced) -> None:
        """Reserve the price, run the handler, and spend when it answers with success."""
        client = read_client(self._scope)
        paid = self._engine.challenger.authenticate(credential, [own.offer], client=client)
        self._gate.failed.check(paid.key.channel_id)
        room = self._gate.bodies.room(paid.key.channel_id, client)
        self._body.bound(room, self._gate.body_timeout_s)
        running = self._gate.running
        try:
            with _UNCOUNTED if running is None else running.of_client(client):
                await self._buy(paid, own)
        finally:
            self._body.release()

    async def _serve_by(self, rails: Rails, raw: str | None) -> None:
        """Let a rail take the payment and answer; the handler does not know the difference."""
        require_no_override(self._fields, self._method)
        await self._require_ready()
        if self._own is None:
            raise MethodNotSoldError(self._method, self._gate.table.methods(self._scope))
        client = read_client(self._scope)
        self._gate.failed.check(client)
        self._body.bound(self._gate.bodies.room(None, client), self._gate.body_timeout_s)
        running = self._gate.running
        try:
            with nullcontext() if running is None else running.of_client(client):
                await rails.serve(
                    RailRequest(
                        request_id=self.request_id,
                        scope=self._scope,
                        body=self._body,
                        send=self._send_noted,
                        app=self._gate.app,
                        priced=self._own,
                        credential=raw,
                        charged=self._tell_charged,
                    )
                )
        except PeerError as error:
            if client and error.status in _FAULTS | {PAYMENT_REQUIRED}:
                with suppress(TooManyRequestsError):
                    self._gate.failed.require(client)
            raise
        finally:
            self._body.release()

    async def _send_noted(self, message: Message) -> None:
        self.has_started = True
        await self._send(message)

    def _tell_charged(self, charged: Charged) -> None:
        if self._teller is not None:
            self._teller.charged(charged)

    async def _buy(self, paid: Authenticated, own: Priced) -> None:
        hold = self._engine.hold(
            paid,
            is_metered=own.route.metered,
            claim=self._read_claim(own),
            reservation_id=self.request_id,
        )
        try:
            outcome = await self._engine.perform(paid, hold)
        except PeerError as error:
            if self._is_proven:
                self._count(paid, 0, error.status)
            raise
        if self._teller is not None:
            self._teller.accepted(paid, outcome)
        if outcome.stored is not None:
            if self._teller is not None:
                self._teller.repeated(outcome, outcome.stored.status)
            receipt = self._engine.receipt(paid, outcome)
            await send_stored(self._send, outcome.stored, receipt, is_head=False)
            return
        reservation = self._engine.reservation(paid, hold, outcome)
        # From here on an amount is reserved: every way out ends the reservation.
        pause_s = self._gate.pause_s if own.route.pause_s is None else own.route.pause_s
        meter = Meter(
            engine=self._engine,
            paid=paid,
            reservation=reservation,
            stream_policy=own.route.stream_policy or StreamPolicy.REPLACE,
            pause_s=pause_s,
        )
        answer = Answer(
            send=self._send,
            body=self._body,
            meter=meter,
            units=paid.units,
            is_metered=own.route.metered,
        )
        if self._teller is not None:
            self._teller.begins(reservation, answer)
        failure: BaseException | None = None
        try:
            await self._run_handler(own, meter, answer, outcome.state.terms.payer)
        except BaseException as error:
            failure = error
            raise
        finally:
            if self._teller is not None:
                self._teller.ended(meter, answer, failure)
            status = answer.status if answer.refusal is None else answer.refusal.status
            # Vouchers that each pay a base unit are no flood, and neither are those of each unit.
            self._count(paid, min(sum(meter.usage.values()), meter.cost), status)

    def _count(self, paid: Authenticated, units: int, status: int | None) -> None:
        """Bound requests that cost work and buy nothing; bought units earn further ones.

        A payer whose voucher is too low, or whose worker died, made no error and asks again. Such
        a request counts only if its body cost more than verifying its voucher.
        """
        if units:
            self._gate.failed.earn(paid.key.channel_id, units)
            self._engine.earn_rate(paid, units)
        elif status in _FAULTS or (status in _STATES and self._body.size > REQUEST_BYTES_MAX):
            with suppress(TooManyRequestsError):
                self._gate.failed.require(paid.key.channel_id)

    async def _run_handler(self, own: Priced, meter: Meter, answer: Answer, payer: Address) -> None:
        if own.route.metered:
            self._scope[METER] = meter
        self._body.begin_handling()
        running = self._gate.running
        is_ended = False
        try:
            with _UNCOUNTED if running is None else running.of_payer(payer):
                await self._gate.app(self._scope, self._body.receive, answer.send)
            is_ended = True
        except ProblemError as error:
            answer.refusal = answer.refusal or error
        except ClientDisconnect:
            answer.is_client_gone = True
        except Exception:
            # Ignore what the handler's framework makes of the gate's own refusal.
            if answer.refusal is None and not answer.is_client_gone:
                raise
        finally:
            self.has_started = answer.has_started
            if answer.is_client_gone:
                meter.reservation.outcome = ChargeOutcome.LEFT
            elif not is_ended or answer.refusal is not None:
                meter.reservation.outcome = ChargeOutcome.FAILED
            if not answer.has_started:
                meter.reservation.give_back()  # F-48: nothing was sent
            await meter.reservation.finish(answer.unrepeatable())
        if answer.refusal is not None and not answer.is_client_gone:
            raise answer.refusal

    def _read_claim(self, own: Priced) -> Callable[[bytes], Awaitable[RequestClaim]] | None:
        """Return the function that reads the request for its key, or None without a key.

        The function buffers the body, so it is called only for a payer with a verified voucher.
        """
        key = read_idempotency_key(self._fields)
        if key is None:
            return None
        now = int(self._engine.now())

        async def claim(reservation_id: bytes) -> RequestClaim:
            self._is_proven = True
            digest = await self._body.digest(self._scope)
            return RequestClaim(
                route=f"{own.offer.http_method} {own.offer.route}",
                idempotency_key=key,
                request_digest=digest,
                reservation_id=reservation_id,
                claimed_at=now,
                expires_at=now + IDEMPOTENCY_LIFETIME_S,
            )

        return claim

    async def refuse(self, error: ProblemError) -> None:
        """Answer with a problem, and with challenges when another payment would help."""
        if isinstance(error, OperatorError):
            kind = type(error).__name__
            _log.warning("%s: %s", kind, error, extra={"kind": kind})
        await self._gate.tarpit.wait(error, self._scope)
        credential = self._credential
        channel_id = None if credential is None else credential.payload.channel_id
        challenges: list[Challenge] = []
        lines: list[tuple[bytes, bytes]] = []
        price: list[dict[str, object]] = []
        sentence = None
        if error.offers_challenge and isinstance(error, PeerError):
            hint = channel_id if isinstance(error, InsufficientBalanceError) else None
            own = [one for one in self._priced if one.route.method == self._method]
            offered = own or self._priced
            if error.status == PAYMENT_REQUIRED:
                price, sentence = describe_price(offered, self._gate.unit)
            more = await self._ask_rails(own)
            own_kind = (self._engine.settings.method.name, INTENT)
            kinds = [own_kind] * len(offered) + [(one.method, one.intent) for one in more]
            for index in rank_offers(read_preference(self._fields), kinds):
                if index < len(offered):
                    challenge = self._engine.challenger.issue(offered[index].offer, hint)
                    challenges.append(challenge)
                    lines.append((b"www-authenticate", format_challenge(challenge).encode()))
                else:
                    lines += more[index - len(offered)].headers
        if self._teller is not None:
            self._teller.refused(error, challenges)
        detail = explain(error, sentence, self._engine.settings.method.name)
        if wants_page(read_accept(self._fields)):
            body, headers = format_page(error, detail), PAGE_HEADERS
        else:
            headers = PROBLEM_HEADERS
            body = format_problem(
                error,
                challenge_id=None if credential is None else credential.challenge.id,
                channel_id=channel_id,
                detail=detail,
                price=price,
                names_error=True,
            )
        await send_refusal(
            self._send,
            error,
            lines,
            body=body,
            headers=headers,
            is_head=self._method == "HEAD",
        )

    async def _ask_rails(self, own: Sequence[Priced]) -> Sequence[RailOffer]:
        """Return the other ways to pay this request, if one price is known for it."""
        rails = self._rails
        return () if rails is None or len(own) != 1 else await rails.offers(self._scope, own[0])


class _SocketExchange(_Exchange):
    """One websocket for a priced path, from its credential to its last receipt."""

    def __init__(
        self,
        gate: PaymentGate,
        scope: Scope,
        receive: Receive,
        send: Send,
        priced: Sequence[Priced],
    ) -> None:
        denying = denying_send(scope, send, UNPAID)
        super().__init__(gate, {**scope, "method": WEBSOCKET}, receive, denying, priced)
        # A refusal is for programs: a browser shows no page in place of a websocket.
        self._fields = {name: kept for name, kept in self._fields.items() if name != b"accept"}
        self._rails = None  # they pay for answers, and a websocket has none
        self._receive = receive
        self._send_raw = send
        self._app_scope = scope
        self._is_accepted = False

    async def run(self) -> None:
        await self._receive()  # its `websocket.connect`
        field = self._engine.settings.credential_header
        offered = list(self._scope.get("subprotocols") or ())
        if read_credential(self._fields, field) is not None or SUBPROTOCOL not in offered:
            await super().run()
            return
        offered.remove(SUBPROTOCOL)
        self._app_scope = {**self._app_scope, "subprotocols": offered}
        running = self._gate.running
        source = read_client(self._scope)
        with nullcontext() if running is None else running.of_client(source):
            await self._run_by_frames((field or "authorization").lower().encode())

    async def _run_by_frames(self, field: bytes) -> None:
        """Accept the connection, and read its credential from the first frame (browsers)."""
        await self._send_raw({"type": "websocket.accept", "subprotocol": SUBPROTOCOL})
        self._is_accepted = True
        self._send = framing_send(self._send_raw)
        deadline = asyncio.get_running_loop().time() + AUTHORIZATION_S_MAX
        try:
            for _ in range(CREDENTIALS_REFUSED_MAX):
                async with asyncio.timeout_at(deadline):
                    authorization = await read_first_frame(self._receive)
                if authorization is None:
                    return
                self._fields = {**self._fields, field: [authorization]}
                try:
                    await self._run()
                except ProblemError as error:
                    await self.refuse(error)
                    if error.status not in TOLERATED:
                        break
                else:
                    return
        except TimeoutError:
            await self.refuse(PaymentRequiredError("No credential came in time."))
        except BadRequestError as error:
            await self.refuse(error)
        await self._send_raw({"type": "websocket.close", "code": UNPAID})

    async def _manage(self, credential: Credential) -> None:
        raise BadRequestError(
            f"A websocket opens with a voucher or an opening; send {credential.payload.action} in "
            "a frame, or in a HEAD request."
        )

    async def _serve(self, credential: Credential, own: Priced) -> None:
        if self._is_accepted:  # the client is counted already
            client = read_client(self._scope)
            paid = self._engine.challenger.authenticate(credential, [own.offer], client=client)
            self._gate.failed.check(paid.key.channel_id)
            await self._buy(paid, own)
        else:
            await super()._serve(credential, own)

    async def _buy(self, paid: Authenticated, own: Priced) -> None:
        route = own.route
        is_fixed = not route.metered and own.offer.request.pricing.main.kind not in COUNTED_KINDS
        hold = self._engine.hold(paid, is_metered=not is_fixed, reservation_id=self.request_id)
        outcome = await self._engine.perform(paid, hold)
        if self._teller is not None:
            self._teller.accepted(paid, outcome)
        reservation = self._engine.reservation(paid, hold, outcome)
        # From here on an amount is reserved: every way out ends the reservation.
        meter = SocketMeter(
            engine=self._engine,
            paid=paid,
            reservation=reservation,
            stream_policy=route.stream_policy or StreamPolicy.REPLACE,
            pause_s=self._gate.pause_s if route.pause_s is None else route.pause_s,
        )
        socket = PaidWebSocket(
            receive=self._receive,
            send=self._send_raw,
            meter=meter,
            route=route,
            parse=self._engine.settings.method.parse_credential,
            perform=self._perform,
            refuse=self._refuse_frame,
            is_accepted=self._is_accepted,
        )
        if self._teller is not None:
            self._teller.begins(reservation, socket)
        if route.metered:
            self._app_scope = {**self._app_scope, METER: meter}
        await self._run_socket(paid, meter, socket, outcome.state.terms.payer)

    async def _run_socket(
        self, paid: Authenticated, meter: SocketMeter, socket: PaidWebSocket, payer: Address
    ) -> None:
        running = self._gate.running
        failure: BaseException | None = None
        try:
            with nullcontext() if running is None else running.of_payer(payer):
                await socket.run(self._gate.app, self._app_scope)
        except BaseException as error:
            failure = error
            raise
        finally:
            self.has_started = socket.has_started and not self._is_accepted
            await meter.reservation.finish()
            if self._teller is not None:
                self._teller.ended(meter, socket, failure)
            status = failure.status if isinstance(failure, ProblemError) else socket.status
            self._count(paid, min(sum(meter.usage.values()), meter.cost), status)

    async def _perform(self, credential: Credential) -> Receipt:
        """Accept a further credential of a running connection."""
        if brings_deposit(credential.payload):
            await self._require_ready()
        return await super()._perform(credential)

    async def _refuse_frame(self, error: ProblemError) -> None:
        self._send = framing_send(self._send_raw)
        await self.refuse(error)
