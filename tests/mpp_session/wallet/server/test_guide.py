"""The guide's policy is one, its table has every code, and its paths are the wallet's."""

import re
from pathlib import Path

from mpp_session.wallet.policy import parse_policy
from mpp_session.wallet.server.process import OWNER_SOCKET, OWNER_TOKEN, socket_of
from mpp_session.wallet.types import Code

ROOT = Path(__file__).resolve().parents[4]
GUIDE = (ROOT / "docs" / "guide" / "wallet.md").read_text()


def test_the_guides_policy_can_be_loaded() -> None:
    (text,) = re.findall(r"(?s)```toml\n(.*?)```", GUIDE)
    policy = parse_policy(text, source="wallet.md")
    assert set(policy.agents) == {"scout", "writer"}
    home = Path("/var/lib/mpp-wallet")
    assert f"unix:{socket_of(home, policy.agents['scout'])}" in GUIDE


def test_the_guide_names_every_code_and_path() -> None:
    section = GUIDE.partition("### Codes")[2].partition("##")[0]
    named = set(re.findall(r"(?m)^\| `([a-z_]+)` \|", section))
    assert {str(code) for code in Code} - {"allowed"} == named
    assert f"`{OWNER_SOCKET}`" in GUIDE
    assert f"`{OWNER_TOKEN}`" in GUIDE
