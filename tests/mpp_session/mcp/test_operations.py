"""What has a price is found by the names of requests, and a mistake in the prices is refused."""

import pytest

from channel.errors import ConfigError
from mpp_session.mcp.operations import Operations, list_operations
from mpp_session.mcp.server import current_meter, sell_tools
from tests.mpp_session.mcp.shop import per_request

PRICE = per_request()


@pytest.mark.parametrize("uri", ["data://{a", "data://{}"])
def test_a_template_that_cannot_be_read_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="data"):
        Operations(list_operations({}, {uri: PRICE}, {}, ()))


def test_a_server_that_sells_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="found none"):
        sell_tools({})


def test_an_operation_has_one_price() -> None:
    twice = list_operations({"search": PRICE}, {}, {}, ()) * 2
    with pytest.raises(ConfigError, match="priced twice"):
        Operations(twice)


def test_a_metered_tool_needs_a_price() -> None:
    with pytest.raises(ConfigError, match="need a price: words"):
        list_operations({"search": PRICE}, {}, {}, ("words",))


def test_a_meter_belongs_to_a_running_call() -> None:
    with pytest.raises(ConfigError, match="no metered tool is running"):
        current_meter()


@pytest.mark.parametrize("name", ["a/b", "a b", "a%2Fb", "{x}", "\u00e9", "..", "a?b#c"])
def test_any_name_is_one_path(name: str) -> None:
    """Names may be anything: none reaches another operation's path."""
    (operation,) = list_operations({name: PRICE}, {}, {}, ())
    assert operation.path.isascii()
    assert operation.path.count("/") == 3
    found = Operations([operation])
    assert found.find("tools/call", {"name": name}) is operation
    assert found.find("tools/call", {"name": name.upper() + "x"}) is None
    assert found.find("prompts/get", {"name": name}) is None
    assert found.find("tools/call", {"name": 1}) is None
    assert found.find("ping", {}) is None


def test_a_uri_of_nothing_but_escapes_is_refused_soon() -> None:
    """Each resolves to one that is two characters shorter: there are as many as characters."""
    operations = Operations(list_operations({}, {"data://a": PRICE}, {}, ()))
    with pytest.raises(ValueError, match="escapes of escapes"):
        operations.find("resources/read", {"uri": "data://" + "%" + "25" * 500_000})
