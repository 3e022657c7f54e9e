"""`mpp-session recover`: from a file back to books."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpp_session.cli.app import APP
from mpp_session.errors import CommandError
from mpp_session.testing.chain import TestChain
from tests.mpp_session.cli.test_status import variables


@pytest.fixture
def _settings(devnet: TestChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(devnet, tmp_path / "new.db").items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_settings")
def test_what_cannot_be_collected_is_an_exit_code(devnet: TestChain, tmp_path: Path) -> None:
    """F-108: the chain does not know this channel."""
    path = tmp_path / "channels.jsonl"
    path.write_text(exported(devnet) + "\n")
    assert CliRunner().invoke(APP, ["recover", str(path), "--json"]).exit_code == 3
    path.write_text("")
    assert CliRunner().invoke(APP, ["recover", str(path)]).exit_code == 3  # they are in the books


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("end", ["\n", "", '\n{"format":1,"ch'])
def test_an_export_that_was_cut_off_gives_what_is_whole(
    devnet: TestChain, tmp_path: Path, end: str
) -> None:
    """F-108: the disk was full; all but the last channel can be had."""
    path = tmp_path / "channels.jsonl"
    path.write_text(exported(devnet) + end)
    recovered = CliRunner().invoke(APP, ["recover", str(path), "--json"])
    assert recovered.exit_code == 3
    assert len(json.loads(recovered.stdout)) == 1
    assert ("ends within a line" in recovered.stderr) is (len(end) > 1)


def exported(devnet: TestChain) -> str:
    """Return a line of an export: a channel that no chain has."""
    values = devnet.values
    voucher = {"cumulative_amount": "900", "signature": "0x" + "11" * 65}
    line = {
        "format": 1,
        "chain_id": values.chain_id,
        "escrow": "0x" + values.escrow.hex(),
        "channel_id": "0x" + "22" * 32,
        "payer": "0x" + "33" * 20,
        "payee": "0x" + "44" * 20,
        "token": "0x" + values.token.hex(),
        "authorized_signer": "0x" + "00" * 20,
        **dict.fromkeys(["deposit", "accepted", "spent"], "900"),
        **dict.fromkeys(["settled", "published"], "0"),
        "close_requested_at": 0,
        "is_finalized": False,
        "fact_block": 1,
        "highest": voucher,
        "at_or_below_spent": voucher,
        "above_spent": None,
        "active_at": 1,
        "is_closing": False,
        "closing_with": None,
        "close_tx": "0x",
    }
    return json.dumps(line)


@pytest.mark.usefixtures("_settings")
def test_an_export_that_is_not_there_is_said(tmp_path: Path) -> None:
    missing = CliRunner().invoke(APP, ["recover", str(tmp_path / "none.jsonl")])
    assert isinstance(missing.exception, CommandError)
