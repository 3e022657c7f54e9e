"""Routes passed on without payment, and the answer for paths that are not served."""

import re
from collections.abc import Sequence
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from channel.errors import ProblemError
from channel.wire.problem import PROBLEM_CONTENT_TYPE, format_problem
from mpp_session.gateway.errors import NotServedError
from mpp_session.gateway.upstream import Upstream, read_body, returned_headers

__all__ = ["free_routes", "problem_response", "target_of"]


def free_routes(upstream: Upstream, free: Sequence[str]) -> list[Route]:
    """Return a route for each `METHOD /path`; GET includes HEAD, as HTTP requires."""

    async def pass_on(request: Request) -> Response:
        try:
            target = target_of(request)
            async with upstream.request(request.method, target, request.headers, None) as response:
                body = await read_body(response)
                return Response(body, response.status_code, returned_headers(response))
        except ProblemError as error:
            return problem_response(error)

    routes = []
    for entry in free:
        method, _, path = entry.partition(" ")
        routes.append(Route(path, pass_on, methods=[method], include_in_schema=False))
    return routes


def target_of(request: Request) -> str:
    """Return path and query undecoded: a decoded path could be decoded once more upstream.

    Raises:
        NotServedError: The path leaves the template that it matches, for some server: one that
            decodes it twice, or that ignores what follows a `;` in a segment.
    """
    segments = re.split(r"[/\\]", unquote(request.scope["path"]))
    if any(one.partition(";")[0].strip() in (".", "..") for one in segments):
        raise NotServedError("This gateway does not serve this path.")
    path: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return (path + b"?" + query if query else path).decode("ascii")


def problem_response(error: ProblemError) -> Response:
    """Answer an error unrelated to credentials: no challenge, nothing charged."""
    headers = {"cache-control": "no-store"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return Response(
        format_problem(error, names_error=True), error.status, headers, PROBLEM_CONTENT_TYPE
    )
