"""The gateway as an ASGI application: paid routes, free routes, and 404 for everything else."""

from collections.abc import Callable

from starlette.routing import Route as AppRoute
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from channel.engine import Engine
from channel.http import PaymentGate, Price, Route
from channel.state.commands import StreamPolicy
from channel.types import TokenUnit
from mpp_session.gateway.completions import PATH, ChatCompletions
from mpp_session.gateway.errors import NotServedError
from mpp_session.gateway.free import free_routes, problem_response
from mpp_session.gateway.readiness import Readiness
from mpp_session.gateway.upstream import Upstream
from mpp_session.settings import Config

__all__ = ["Gateway"]


class Gateway:
    """All routes of one gateway."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        upstream: Upstream,
        *,
        stop: Callable[[], None],
        unit: TokenUnit | None = None,
    ) -> None:
        """Build it. `stop` is called when the ledger is found to contradict itself.

        `unit` is the token's, for prices in whole tokens and for showing amounts to people.

        Raises:
            ConfigError: A price does not fit the token.
        """
        self.tariff = tariff = config.price.tariff(unit)
        """What a completion costs."""
        self._readiness = Readiness(upstream, config.upstream)
        completions = ChatCompletions(upstream, config.upstream, self._readiness, tariff)
        payment = config.payment
        price = Price(
            tariff=tariff,
            min_voucher_delta=payment.min_voucher_delta,
            suggested_deposit=payment.suggested_deposit,
            description="Tokens of a language model",
        )
        self._gate = PaymentGate(
            Router(
                [
                    AppRoute(PATH, completions.answer, methods=["POST"]),
                    *free_routes(upstream, config.upstream.free),
                ],
                default=_not_served,
                redirect_slashes=False,
            ),
            engine=engine,
            routes=[
                Route(
                    method="POST",
                    path=PATH,
                    price=price,
                    metered=True,
                    stream_policy=StreamPolicy[payment.stream_policy.upper()],
                )
            ],
            pause_s=payment.pause_timeout_s,
            body_timeout_s=config.listen.body_timeout_s,
            ready=self._readiness.require,
            unit=unit,
            stop_worker=stop,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] == PATH + "/":
            await _not_served(scope, receive, send)  # a gate below a mount would sell it
            return
        await self._gate(scope, receive, send)

    async def watch_model_server(self) -> None:
        """Probe the model server repeatedly while the gateway serves."""
        await self._readiness.run()

    def end_streams(self) -> None:
        """End every running stream now, with its receipt."""
        self._gate.engine.end_streams()


async def _not_served(scope: Scope, receive: Receive, send: Send) -> None:
    error = NotServedError("This gateway does not serve this path.")
    await problem_response(error)(scope, receive, send)
