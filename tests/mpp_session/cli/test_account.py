"""One error names all that an account lacks, and no output shows its key."""

from pathlib import Path

import pytest

from mpp_session.cli.account import KeyedAccount, devnet_store, load_account
from mpp_session.errors import CommandError


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        load_account(
            rpc_url="http://127.0.0.1:1",
            chain_id=None,
            keystore=tmp_path / "key.json",
            password_file=None,
            token=None,
        )
    assert str(caught.value) == "give --devnet, or also --chain-id, --token, --password-file"


def test_an_account_shows_its_node_and_no_secret() -> None:
    """F-103."""
    shown = repr(KeyedAccount("http://127.0.0.1:1", 1, b"\x42" * 32, "a password"))
    assert "http://127.0.0.1:1" in shown
    assert "password" not in shown
    assert "BB" not in shown


def test_a_devnets_agent_keeps_its_books_beside_the_devnets_file(tmp_path: Path) -> None:
    assert devnet_store(tmp_path / "devnet.json") == tmp_path / "devnet.agent.db"
