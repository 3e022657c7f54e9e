"""The files of docs/deploy are valid, and name what there is."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mpp_session.settings.config import load_config

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "docs" / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
EXPOSURE_MAX = 1.5
"""systemd's own measure, from 0 to 10; a service without any restriction has 9.6."""
PROVIDER = {
    "MPP_SESSION_UPSTREAM_URL": "http://model",
    "MPP_SESSION_PRICE_PER_UNIT": "1",
    "MPP_SESSION_PAYMENT_REALM": "tests",
    "MPP_SESSION_PAYMENT_SECRETS": "a secret of thirty-two bytes or more",
    "MPP_SESSION_CHAIN_RPC_URL": "http://node",
    "MPP_SESSION_CHAIN_ID": "31337",
    "MPP_SESSION_CHAIN_ESCROW": "0x" + "11" * 20,
    "MPP_SESSION_CHAIN_TOKEN": "0x" + "22" * 20,
    "MPP_SESSION_PAYEE_ADDRESS": "0x" + "33" * 20,
    "MPP_SESSION_PAYEE_KEY": "0x" + "44" * 32,
}


def systemd(*arguments: str) -> str:
    """Return what systemd-analyze says of a unit; skip the test where it is not there."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("this system has no systemd-analyze")
    done = subprocess.run(  # noqa: S603 - our own files
        [program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    """The program alone is replaced, which is not installed where the tests run."""
    for unit in [*UNITS, DEPLOY / "mpp-session.socket"]:
        text = unit.read_text().replace("/opt/mpp-session/bin/mpp-session", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    assert systemd("verify", *(str(path) for path in tmp_path.iterdir())) == ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_services_can_reach_little(unit: Path) -> None:
    said = systemd("security", "--offline=true", str(unit))
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert level is not None, said
    assert float(level.group(1)) <= EXPOSURE_MAX


@pytest.mark.parametrize("name", ["mpp-session.service", "Containerfile"])
def test_the_variables_that_are_set_are_settings(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway loads them beside an operator's own, and a variable that it does not know fails."""
    text = (DEPLOY / name).read_text()
    given = dict(re.findall(r"(MPP_SESSION_\w+)=(\S+)", text))
    assert len(given) >= 2
    for variable, value in {**PROVIDER, **given}.items():
        monkeypatch.setenv(variable, value)
    config = load_config(None)
    assert config.ledger.url == "sqlite:////var/lib/mpp-session/ledger.db"
    assert config.ledger.state_dir == "/var/lib/mpp-session"


def test_the_service_gives_the_gateway_time_to_end() -> None:
    unit = (DEPLOY / "mpp-session.service").read_text()
    stop = re.search(r"TimeoutStopSec=(\d+)", unit)
    podman = re.search(r"--stop-timeout (\d+)", (DEPLOY / "Containerfile").read_text())
    assert stop is not None
    assert podman is not None
    # `listen.shutdown_s`, ten seconds for a worker's ledger, and the settler after that
    assert int(stop.group(1)) == int(podman.group(1)) >= 10 + 10 + 20


def test_the_container_is_built_from_what_is_built_and_runs_without_root() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    lock = re.search(r"requirements/\S+\.txt", text)
    assert lock is not None
    assert (ROOT / lock.group()).is_file()
    assert "dist/mpp_session-*.whl" in text
    user = re.search(r"(?m)^USER (\d+):(\d+)$", text)
    assert user is not None
    assert "0" not in user.groups()
    assert re.search(r"(?m)^VOLUME /var/lib/mpp-session$", text)
    command = re.search(r"(?m)^CMD (\[.*\])$", text)
    assert command is not None
    assert json.loads(command.group(1))[:2] == ["gateway", "--config"]
