"""What a request says about itself."""

from typing import Any

import pytest

from channel.http.request import read_client


@pytest.mark.parametrize(
    ("client", "source"),
    [
        (("203.0.113.7", 5000), "cb007107"),
        (("2001:db8:1:2:3:4:5:6", 5000), "20010db800010002"),
        (("2001:db8:1:2:ffff::1", 5001), "20010db800010002"),
        (("::ffff:203.0.113.7", 5000), "cb007107"),
        (("testclient", 5000), ""),
        (("", 0), ""),
        (None, ""),
    ],
)
def test_a_source_is_an_address_or_an_ipv6_network(client: Any, source: str) -> None:
    """F-98: a host has a whole /64 to send from; what is no address is not counted as one."""
    assert read_client({"type": "http", "client": client}).hex() == source


def test_a_server_that_names_no_client_has_none() -> None:
    assert read_client({"type": "http"}) == b""
