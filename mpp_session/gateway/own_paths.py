"""Keeps the paths that the gateway answers itself apart from those of another server (pure)."""

from collections.abc import Iterator, Sequence
from typing import Final

from starlette.routing import compile_path

from channel.errors import ConfigError
from channel.http import Route
from mpp_session.discovery.site import published_paths
from mpp_session.gateway.descriptions import MODELS_PATH
from mpp_session.gateway.endpoints import ENDPOINTS
from mpp_session.gateway.generation import GENERATION_PATH
from mpp_session.gateway.paced import PACED_PATH
from mpp_session.prices.table import PriceTable
from mpp_session.settings import Config

__all__ = ["own_routes"]

_OWN: Final = (MODELS_PATH, f"{MODELS_PATH}/{{model:path}}", GENERATION_PATH, PACED_PATH)


def own_routes(table: PriceTable, config: Config) -> list[Route]:
    """Return free routes for the gateway's own paths below a priced template of a table.

    Args:
        table: Its rows may price templates such as `/{rest:path}`.
        config: Which paths are free, and which the gateway answers itself.

    Raises:
        ConfigError: A row prices what the gateway answers itself, or sells by model.
    """
    sold = [path.split(" ", 1) for path in table.paths()]
    gets = [path for method, path in sold if method == "GET"]
    posts = [path for method, path in sold if method == "POST"]
    for endpoint in ENDPOINTS:
        for path in _covering(posts, endpoint.path):
            raise ConfigError(
                f"`prices`: POST {path} covers {endpoint.path}, which the gateway sells by model: "
                "name narrower paths"
            )
    passed = (entry.partition(" ") for entry in config.upstream.free)
    own = [*_OWN, *(path for method, _, path in passed if method == "GET")]
    own += published_paths(config.discovery.compat) if config.discovery.enabled else []
    for path in own:
        if path in gets:
            raise ConfigError(f"`prices`: GET {path} is answered by the gateway, free: remove it")
    covered = [path for path in dict.fromkeys(own) if any(_covering(gets, path))]
    return [Route(method="GET", path=path, price=None) for path in covered]


def _covering(templates: Sequence[str], path: str) -> Iterator[str]:
    for template in templates:
        if compile_path(template)[0].match(path.partition("{")[0]):
            yield template
