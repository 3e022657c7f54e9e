"""Reads the JSON file that `mpp-session devnet` writes, for commands and tests."""

import secrets
from pathlib import Path
from typing import Any, Final

import msgspec

from mpp_session.errors import CommandError
from settlement.dev.devnet import DevnetValues

__all__ = ["devnet_settings", "read_devnet", "selling_settings"]

_SUGGESTED_DEPOSIT: Final = 100_000

_UNLIMITED: Final = 1_000_000


def read_devnet(path: Path) -> DevnetValues:
    """Return the values that a running devnet wrote.

    Raises:
        CommandError: The file does not exist, or `mpp-session devnet` did not write it.
    """
    try:
        return msgspec.convert(
            _bytes_from_hex(msgspec.json.decode(path.read_bytes())), DevnetValues
        )
    except OSError:
        raise CommandError(f"{path} does not exist: start `mpp-session devnet` first") from None
    except (msgspec.MsgspecError, ValueError):
        raise CommandError(f"{path} was not written by `mpp-session devnet`") from None


def devnet_settings(values: DevnetValues) -> dict[str, Any]:
    """Return a devnet's values as settings of a gateway whose payee is its account `payee`."""
    payee = values.accounts["payee"]
    return {
        "chain.rpc_url": values.rpc_url,
        "chain.id": values.chain_id,
        "chain.escrow": "0x" + values.escrow.hex(),
        "chain.token": "0x" + values.token.hex(),
        "payee.address": "0x" + payee.address.hex(),
        "payee.key": "0x" + payee.private_key.hex(),
        "sponsoring.fee_payer": True,
        # its ether is worthless, and a developer who experiments opens many channels (O-60)
        "sponsoring.deposits_per_payer": _UNLIMITED,
        "sponsoring.deposits_per_address": _UNLIMITED,
        "sponsoring.gas_budget_wei": 10**18,
    }


def selling_settings(path: Path) -> dict[str, Any]:
    """Return all settings that an application needs to sell on a devnet, from the devnet's file.

    They are good enough for a chain whose money is worth nothing: the secret of the challenges is
    a new one at each start. The books lie beside the file.

    Raises:
        CommandError: See `read_devnet`.
    """
    return {
        **devnet_settings(read_devnet(path)),
        "payment.realm": "localhost",
        "payment.secrets": [secrets.token_urlsafe(32)],
        "payment.suggested_deposit": _SUGGESTED_DEPOSIT,
        "ledger.url": f"sqlite:///{path.resolve().with_suffix('.ledger.db')}",
    }


def _bytes_from_hex(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("0x"):
        return bytes.fromhex(value[2:])
    if isinstance(value, dict):
        return {name: _bytes_from_hex(entry) for name, entry in value.items()}
    return value
