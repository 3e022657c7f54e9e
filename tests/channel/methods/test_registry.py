"""The seam: the methods are found by name, and the rest of the program knows none of them."""

import re
from pathlib import Path

import pytest

from channel.chain import EscrowInterface
from channel.errors import ConfigError
from channel.methods.registry import DEFAULT, METHODS, find_method

ROOT = Path(__file__).resolve().parents[3]
SEAM = ROOT / "channel" / "methods"
OWN_DOMAIN = ROOT / "channel" / "chain.py"
"""Describes the escrow of `contracts/`, whose domain is a default there."""
PAYS_EVM = ROOT / "channel" / "client"
"""The client pays by one method, whose deposits it signs."""
CHARGES = (ROOT / "channel" / "wire" / "charge.py", ROOT / "mpp_session" / "rails")
"""Charges are another intent, whose method is not behind this seam."""
ANVIL = ROOT / "settlement" / "dev" / "devnet.py"
"""Starts Anvil's Tempo mode, which contains the code of Permit2."""
NAMED = re.compile(
    r"""["'](?:evm|tempo)["']|method (?:evm|tempo)\b|channel\.methods\.(?:evm|tempo)\b"""
    r"|EVM Payment Channel|Tempo Stream Channel"
)


def test_a_method_is_found_by_the_name_that_challenges_state() -> None:
    for method in METHODS:
        assert find_method(method.name) is method
    assert DEFAULT in METHODS
    with pytest.raises(ConfigError, match="evm"):
        find_method("lightning")


def test_no_two_methods_share_a_name_or_a_signing_domain() -> None:
    """SEC-03: a voucher of one method is none of another's, even for an escrow at one address."""
    assert len({method.name for method in METHODS}) == len(METHODS)
    assert len({method.escrow.domain for method in METHODS}) == len(METHODS)


def test_nothing_outside_the_seam_names_a_method() -> None:
    """Decision 13: a new method is one package and one line of registration."""
    sources = [
        path
        for package in ("channel", "settlement", "mpp_session")
        for path in sorted((ROOT / package).rglob("*.py"))
        if not any(map(path.is_relative_to, (SEAM, PAYS_EVM, *CHARGES)))
    ]
    assert len(sources) > 300
    named = {path for path in sources if NAMED.search(path.read_text("utf-8"))}
    assert named == {OWN_DOMAIN, ANVIL}
    assert OWN_DOMAIN.read_text("utf-8").count(EscrowInterface().domain) == 1
