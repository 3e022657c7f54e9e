# ruff: noqa: PLC0415 - each framework is imported by the test that needs it
"""One small application in each of the frameworks that a provider may have: it answers `sold`."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

__all__ = ["BUILDERS", "living"]

App = Callable[..., Any]
SOLD = "sold"


def build_starlette() -> App:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    async def joke(_: Request) -> PlainTextResponse:
        return PlainTextResponse(SOLD)

    sub = Starlette(routes=[Route("/joke", joke)])
    paths = ("/joke", "/img/{size}", "/files/{rest:path}")
    return Starlette(routes=[*(Route(path, joke) for path in paths), Mount("/sub", sub)])


def build_fastapi() -> App:
    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse

    app, sub = FastAPI(), FastAPI()

    async def joke() -> PlainTextResponse:
        return PlainTextResponse(SOLD)

    for path in ("/joke", "/img/{size}", "/files/{rest:path}"):
        app.get(path)(joke)
    sub.get("/joke")(joke)
    app.mount("/sub", sub)
    return app


def build_litestar() -> App:
    from litestar import Litestar, get

    @get(["/joke", "/img/{size:str}", "/files/{rest:path}", "/sub/joke"], media_type="text/plain")
    async def joke() -> str:
        return SOLD

    return Litestar([joke], openapi_config=None)


def build_quart() -> App:
    from quart import Quart

    app = Quart(__name__)

    async def joke(**_: str) -> str:
        return SOLD

    for path in ("/joke", "/img/<size>", "/files/<path:rest>", "/sub/joke"):
        app.add_url_rule(path, path, joke)
    return app


def build_flask() -> App:
    from asgiref.wsgi import WsgiToAsgi
    from flask import Flask

    app = Flask(__name__)

    def joke(**_: str) -> str:
        return SOLD

    for path in ("/joke", "/img/<size>", "/files/<path:rest>", "/sub/joke"):
        app.add_url_rule(path, path, joke)
    return WsgiToAsgi(app)  # type: ignore[no-untyped-call]


def build_django() -> App:
    import django
    from django.conf import settings
    from django.core.handlers.asgi import ASGIHandler
    from django.http import HttpResponse
    from django.urls import path

    async def joke(_: Any, **__: str) -> HttpResponse:
        return HttpResponse(SOLD)

    class Urls:
        urlpatterns = [  # noqa: RUF012
            path("joke", joke),
            path("img/<size>", joke),
            path("files/<path:rest>", joke),
            path("sub/joke", joke),
        ]

    if not settings.configured:
        settings.configure(ROOT_URLCONF=Urls, ALLOWED_HOSTS=["*"], DEBUG=False)
        django.setup(set_prefix=False)
    handler: App = ASGIHandler()
    return handler


def build_blacksheep() -> App:
    from blacksheep import Application, text
    from blacksheep.server.routing import Router

    app = Application(router=Router())

    async def joke() -> Any:
        return text(SOLD)

    for path in ("/joke", "/img/{size}", "/files/{path:rest}", "/sub/joke"):
        app.router.add_get(path, joke)
    return app


def build_falcon() -> App:
    from falcon.asgi import App as Falcon

    class Joke:
        async def on_get(self, _: Any, response: Any, **__: str) -> None:
            response.text = SOLD

    app = Falcon()
    app.req_options.strip_url_path_trailing_slash = True
    for path in ("/joke", "/img/{size}", "/files/{rest:path}", "/sub/joke"):
        app.add_route(path, Joke())
    return app


BUILDERS: dict[str, Callable[[], App]] = {
    "starlette": build_starlette,
    "fastapi": build_fastapi,
    "litestar": build_litestar,
    "quart": build_quart,
    "flask": build_flask,
    "django": build_django,
    "blacksheep": build_blacksheep,
    "falcon": build_falcon,
}


@contextlib.asynccontextmanager
async def living(app: App) -> AsyncIterator[None]:
    """Start an application that has to be started, and stop it."""
    start, stop = getattr(app, "start", None), getattr(app, "stop", None)
    if start is not None:
        await start()
    yield
    if start is not None and stop is not None:
        await stop()
