"""`mpp-session validate` as a program: lines, a document, exit codes, and no real money."""

import json
from pathlib import Path

from mpp_session.testing import TestChain, TestProvider
from tests.mpp_session.cli.conftest import Run


def test_a_provider_passes_and_is_paid(
    run: Run, devnet: TestChain, sponsoring_provider: TestProvider, tmp_path: Path
) -> None:
    """As one document, with the requirements that each check stands for."""
    devnet.values.write(tmp_path / "devnet.json")
    flags = ("--pay", "--devnet=devnet.json", "--json")
    done = run("validate", f"{sponsoring_provider.url}/joke", *flags)
    document = json.loads(done.stdout)
    assert {one["name"]: one["found"] for one in document["checks"] if one["remedy"]} == {}
    assert (done.returncode, document["ok"]) == (0, True)
    checks = {one["name"]: one for one in document["checks"]}
    assert checks["refund"]["requirements"] == ["CONTRACT-04"]
    assert checks["idempotency"]["found"] == "the same answer, not charged"
    assert checks["stream"]["verdict"] == "skipped"
    (channel,) = sponsoring_provider.channels()
    assert (channel.spent, channel.is_finalized) == (250, True)


def test_a_fault_is_a_line_with_a_remedy_and_an_exit_code(
    run: Run, provider: TestProvider, devnet: TestChain, tmp_path: Path
) -> None:
    done = run("validate", f"{provider.url}/nothing-sold")
    assert done.returncode == 1
    assert "fault   unpaid request: GET without payment gets 404" in done.stdout
    assert "        > answer 402" in done.stdout
    assert done.stdout.rstrip().endswith("1 fault")
    devnet.values.write(tmp_path / "devnet.json")
    for name, found in (("--body=@none.json", "none.json cannot be read"), ("--header=x", "NAME:")):
        refused = run("validate", provider.url, name)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert found in refused.stderr


def test_real_money_is_not_spent_by_accident(run: Run, devnet: TestChain, tmp_path: Path) -> None:
    """The chain is refused before a node is asked, unless the flag allows it."""
    document = json.loads(devnet.values.to_json())
    document["chain_id"] = 8453
    (tmp_path / "main.json").write_text(json.dumps(document))
    flags = ("validate", "http://127.0.0.1:9/joke", "--pay", "--devnet=main.json")
    refused = run(*flags)
    assert refused.returncode == 1
    assert "chain 8453 is not a known test chain" in " ".join(refused.stderr.split())
    assert refused.stdout == ""
    shown = run(*flags, "--any-chain").stdout
    assert "fault   transport: no answer" in shown
    assert "payment" not in shown  # nothing is paid where nothing is asked
