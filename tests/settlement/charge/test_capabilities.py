"""What a token takes is found by simulation before a charge is offered."""

import pytest

from channel.errors import ConfigError
from channel.types import Address
from settlement.abi import Function
from settlement.charge.capabilities import require_transfers
from settlement.dev.devnet import Devnet

PAUSE = Function("pause()")


async def found(chain: Devnet, token: Address | None = None) -> str:
    payee = chain.account("payee").address
    domain = await require_transfers(
        chain.rpc,
        token or chain.values.token,
        payee=payee,
        sender=payee,
    )
    return f"{domain.name} {domain.version}"


async def test_a_token_with_signed_transfers_is_taken_by_its_own_domain(chain: Devnet) -> None:
    """F-21."""
    assert await found(chain) == "Dev USD 1"


async def test_a_contract_without_a_domain_is_refused(chain: Devnet) -> None:
    """Decision 15: the message says what is missing."""
    with pytest.raises(ConfigError, match="no EIP-712 domain"):
        await found(chain, chain.values.escrow)


async def test_a_token_that_refuses_a_transfer_is_refused(chain: Devnet) -> None:
    """Decision 15: a paused one, for example."""
    await chain.deployer.send(chain.values.token, PAUSE.encode())
    with pytest.raises(ConfigError, match="refuses an EIP-3009"):
        await found(chain)
