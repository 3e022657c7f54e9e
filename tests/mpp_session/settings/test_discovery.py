"""What an operator may say of the service is checked when the settings are read."""

import msgspec
import pytest

from mpp_session.settings import Discovery


@pytest.mark.parametrize(
    "given",
    [
        {"contact": "somewhere"},
        {"contact": "a@b <c@d>"},
        {"contact": "javascript:alert(1)"},
        {"url": "ftp://a.example"},
        {"url": "https://a.example/?q"},
        {"title": ""},
        {"description": "x" * 1001},
        {"compat": ["yellow-pages"]},
        {"currency": "dollar"},
    ],
)
def test_what_cannot_be_published_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(given, Discovery)


@pytest.mark.parametrize("contact", ["a@b.example", "https://b.example/help"])
def test_a_contact_is_an_address_of_mail_or_of_a_page(contact: str) -> None:
    assert msgspec.convert({"contact": contact}, Discovery).contact == contact


def test_nothing_needs_to_be_set() -> None:
    assert Discovery() == msgspec.convert({}, Discovery)
    assert Discovery().enabled
