"""The operator's port is open to this machine only, unless the operator says otherwise."""

import msgspec
import pytest

from mpp_session.settings import Admin, Secret

OPEN = ["0.0.0.0", "::", "192.0.2.1", "gateway.example", "127.0.0.1.x"]  # noqa: S104 - refused


@pytest.mark.parametrize("host", OPEN)
def test_an_address_that_others_reach_is_refused(host: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="allow_remote"):
        msgspec.convert({"host": host}, Admin)
    assert msgspec.convert({"host": host, "allow_remote": True}, Admin).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_an_address_of_this_machine_is_taken(host: str) -> None:
    assert msgspec.convert({"host": host}, Admin).host == host


def test_a_token_that_could_be_guessed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`admin\.token` with 32 characters or more, found 8"):
        Admin(token=Secret("password"))
