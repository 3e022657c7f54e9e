"""Every form of a service at `/discovery/{form}` of the operator's port, for the command."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from channel.errors import ConfigError
from mpp_session.discovery.forms import FORMS
from mpp_session.discovery.service import Service

__all__ = ["form_route"]


def form_route(service: Callable[[], Service | None]) -> Route:
    """Return the route. `service` returns what is published now; None if nothing is."""

    async def answer(request: Request) -> Response:
        form, now = FORMS.get(request.path_params["form"]), service()
        if form is None:
            return PlainTextResponse(f"Expected one of: {', '.join(FORMS)}.\n", 404)
        if now is None:
            return PlainTextResponse(
                "This service publishes nothing: set `discovery.enabled = true`; an application "
                "calls `sell(..., discovery=True)`.\n",
                409,
            )
        try:
            return Response(form.render(now), media_type=form.content_type)
        except ConfigError as error:
            return PlainTextResponse(f"{error}\n", 409)

    return Route("/discovery/{form}", answer)
