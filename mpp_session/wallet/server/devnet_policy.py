"""A policy for a first look on a local chain: one agent, whose token lies beside it."""

import secrets
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

from channel.errors import ConfigError
from channel.files import write_new
from mpp_session.wallet.server.sockets import make_home
from settlement.dev.devnet import DevnetValues

__all__ = ["AGENT", "TOKEN_FILE", "read_or_make_policy"]

AGENT: Final = "agent"
TOKEN_FILE: Final = "agent.token"  # noqa: S105 -- a file's name
_POLICY: Final = "policy.toml"
_TOKEN_BYTES: Final = 32
_DAYS: Final = 365
_TEXT: Final = """\
# For a local chain, whose money is worth nothing. docs/guide/policy.md has every key.
version = 1
revision = 1
allow_loopback_http = true

[token.usd]
chain = {chain}
address = "0x{token}"
decimals = {decimals}

[envelope.day]
amount = "100.00 usd"
window = "1d"
locked_max = "50.00 usd"

[agent.{name}]
token = "sha256:{digest}"
envelopes = ["day"]
expires = {expires:%Y-%m-%dT%H:%M:%SZ}

[[rule]]
name = "anything"
action = "allow"

[rule.cap]
deposit = "5.00 usd"
"""


def read_or_make_policy(home: Path, values: DevnetValues) -> Path:
    """Return the policy in a wallet's directory; make it, with its agent's token, if it is missing.

    Raises:
        ConfigError: The directory or a file cannot be used.
    """
    path = home / _POLICY
    if path.exists():
        return path
    make_home(home, is_passed=False)
    token = f"mpp_{secrets.token_urlsafe(_TOKEN_BYTES)}"
    text = _TEXT.format(
        chain=values.chain_id,
        token=values.token.hex(),
        decimals=values.token_decimals,
        name=AGENT,
        digest=sha256(token.encode()).hexdigest(),
        expires=datetime.now(UTC) + timedelta(days=_DAYS),
    )
    try:
        (home / TOKEN_FILE).unlink(missing_ok=True)  # of a policy that is gone
        write_new(home / TOKEN_FILE, f"{token}\n".encode())
        write_new(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be made: {error.strerror}") from None
    return path
