"""`mpp-session keygen`: a key file that every command and every wallet takes."""

import json
import stat
from pathlib import Path

from channel.verify.signature import address_of
from mpp_session.agent.keystore import decrypt_keystore
from tests.mpp_session.cli.conftest import Run


def test_a_key_is_made_encrypted_and_its_address_is_printed(run: Run, tmp_path: Path) -> None:
    """O-68: readable by its owner alone, and never written over."""
    (tmp_path / "password").write_text("correct horse\n")
    done = run("keygen", "agent.json", "--password-file", "password", "--json")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "agent.json"
    key = decrypt_keystore(file, "correct horse")
    document = json.loads(done.stdout)
    assert document == {"address": "0x" + address_of(key).hex(), "keystore": "agent.json"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key.hex() not in file.read_text()
    before = file.read_bytes()
    again = run("keygen", "agent.json", "--password-file", "password")
    assert again.returncode == 1
    assert "never written over" in again.stderr
    assert file.read_bytes() == before
    other = run("keygen", "other.json", "--password-file", "password")
    assert other.stdout.strip() != document["address"]


def test_an_empty_password_is_refused(run: Run, tmp_path: Path) -> None:
    """O-68."""
    (tmp_path / "password").write_text("\n")
    done = run("keygen", "agent.json", "--password-file", "password")
    assert done.returncode == 1
    assert "the password is empty" in done.stderr
    assert not (tmp_path / "agent.json").exists()
