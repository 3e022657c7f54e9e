"""RFC 9530 digests of a request body."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.verify.digest import format_body_digest, is_body_digest

HELLO = b'{"hello": "world"}\n'  # the example of RFC 9530, appendix D
HELLO_SHA256 = "RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg="


def test_the_digest_is_rfc_9530s_own_example() -> None:
    """CHAL-11, AMB-03."""
    assert format_body_digest(HELLO) == f"sha-256=:{HELLO_SHA256}:"


@given(st.binary(max_size=100))
def test_a_bodys_digest_is_recognised_in_both_forms(body: bytes) -> None:
    """CHAL-11, AMB-03: RFC form and the peers' form without colons."""
    digest = format_body_digest(body)
    assert is_body_digest(digest, body)
    assert is_body_digest(digest.replace(":", ""), body)
    assert not is_body_digest(digest, body + b" ")


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha-256=",
        "sha-256=::",
        HELLO_SHA256,
        f"sha-256={HELLO_SHA256[:-1]}",
        f"sha-256=:{HELLO_SHA256}",
        f"SHA-256=:{HELLO_SHA256}:",
        f"sha-512=:{HELLO_SHA256}:",
        f"sha-256=:{HELLO_SHA256}:, md5=:AAAA:",
        "sha-256=:\ud800:",
    ],
)
def test_any_other_form_is_no_digest(digest: str) -> None:
    """CHAL-11: fails closed."""
    assert not is_body_digest(digest, HELLO)
