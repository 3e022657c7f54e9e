"""A wallet that pays leaves a trail that tells everything and gives nothing away."""

import asyncio
import json
import sqlite3
import subprocess
from base64 import urlsafe_b64decode
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from channel.errors import PolicyRefusedError
from mpp_session.agent.client import open_client
from mpp_session.agent.purpose import Purpose, attach_purpose
from mpp_session.wallet.audit.index import Index
from mpp_session.wallet.audit.notes import PublicKey
from mpp_session.wallet.audit.story import tell
from mpp_session.wallet.audit.sums import add_up
from mpp_session.wallet.audit.trail import open_trail, read_entries
from mpp_session.wallet.audit.verify import Report, verify_files
from tests.mpp_session.wallet.server.process import PASSWORD, Pace, WalletProcess


def report(home: Path) -> Report:
    key = PublicKey.parse((home / "trail.pub").read_text())
    with closing(open_trail(home / "wallet.db")) as db:
        return verify_files(db, home / "trail.checkpoints", key)


async def pay(wallet: WalletProcess, shop_url: str) -> None:
    scout = open_client(wallet=wallet.address("scout"), token=wallet.tokens["scout"], task="polls")
    async with scout as client:
        with attach_purpose(Purpose(reason="a second source", on_behalf_of="ann")):
            for prompt in ("who wins", "the secret prompt"):
                await client.post(f"{shop_url}/echo?q=hidden-query", json={"prompt": prompt})
        await client.payments.close(shop_url)
    miser = open_client(wallet=wallet.address("miser"), token=wallet.tokens["miser"])
    async with miser as client:
        await client.post(f"{shop_url}/echo", json={})
        with pytest.raises(PolicyRefusedError):
            await client.post(f"{shop_url}/echo", json={})
        with pytest.raises(PolicyRefusedError, match="https only"):
            await client.get("http://10.0.0.1/of-a-network")


def strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for each in inner for text in strings(each)]
    return [value] if isinstance(value, str) else []


def test_a_payment_is_recorded_and_nothing_secret_is_in_it(
    own_wallet: WalletProcess, shop_url: str, pace: Pace
) -> None:
    wallet = own_wallet
    asyncio.run(pay(wallet, shop_url))
    wallet.stop()
    found = report(wallet.home)
    assert found.is_good, found
    assert found.covered == found.records - 1, "the last checkpoint is written at the stop"

    with closing(open_trail(wallet.home / "wallet.db")) as db:
        entries = list(read_entries(db))
        with Index.open(db, None) as index:
            (close,) = [entry for entry in entries if entry.kind == "close"]
            steps = tell(index, close.fields["tx_hash"])
        sums = {row.name: row for row in add_up(db, "task")}
    kinds = [step.kind for step in steps]
    assert kinds[0] == "decision"
    assert kinds[-1] in {"close", "refund"}
    assert {"open", "voucher", "receipt", "settle"} <= set(kinds)
    assert {step.said for step in steps} >= {"a second source"}
    row = sums["polls"]
    assert (row.requests, row.signed, row.settled) == (2, 500, 500)
    assert row.returned == row.deposited - 500
    assert sums[""].refused > 0
    (refusal,) = [entry.fields for entry in entries if entry.kind == "refusal"]
    assert (refusal["agent"], refusal["code"]) == ("miser", "origin_not_allowed")
    assert "10.0.0.1" in refusal["reason"]

    text = "\n".join(entry_text for entry in entries for entry_text in strings(dict(entry.fields)))
    for secret in (*secrets_of(wallet, pace), "secret prompt", "who wins", "hidden-query"):
        assert secret.lower() not in text.lower(), secret


def secrets_of(wallet: WalletProcess, pace: Pace) -> list[str]:
    """Return what must never be written: keys, tokens, and every signature that was sent."""
    found = [*wallet.tokens.values(), PASSWORD, (wallet.home / "owner.token").read_text().strip()]
    found.append(wallet.chain.account("payer").private_key.hex())
    with closing(sqlite3.connect(wallet.home / "wallet.db")) as db:
        for (opening,) in db.execute("SELECT opening FROM account WHERE opening IS NOT NULL"):
            found.append(json.loads(opening)["signature"].removeprefix("0x"))
    for body in pace.bodies:
        credential = body["headers"].get("authorization", "").partition(" ")[2]
        if credential:
            payload = json.loads(urlsafe_b64decode(credential + "=="))["payload"]
            found.append(payload["signature"].removeprefix("0x"))
            found.append(credential)
    assert len(found) >= 8
    return found


def test_a_wallet_does_not_start_on_a_trail_that_was_cut(wallet: WalletProcess) -> None:
    wallet.stop()
    with closing(sqlite3.connect(wallet.home / "wallet.db")) as db:
        db.execute("DROP TRIGGER trail_grows")
        db.execute("DELETE FROM trail WHERE seq > (SELECT max(seq) - 3 FROM trail)")
        db.commit()
    with pytest.raises((AssertionError, subprocess.SubprocessError)):
        wallet.start()
    assert "the audit trail is not that of the checkpoints" in wallet.log()
    assert not report(wallet.home).is_good
