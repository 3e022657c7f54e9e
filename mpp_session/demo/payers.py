"""One client in a process of its own that pays for one URL.

    python -m mpp_session.demo.payers NAME URL

Standard input has `PayerTerms` of `mpp_session.demo.clients` as JSON. What the client was answered
is a line of JSON: see `Answer` there.
"""

import asyncio
import sys
from typing import Any, Final

import httpx
import msgspec

from mpp_session.agent.keystore import import_account
from mpp_session.demo.clients import Answer, PayerTerms

__all__ = ["main"]

_TIMEOUT_S: Final = 60.0


def main() -> None:
    """Pay once, and print what came of it."""
    name, url = sys.argv[1:]
    terms = msgspec.json.decode(sys.stdin.buffer.read(), type=PayerTerms)
    try:
        answer = asyncio.run(_PAYERS[name](url, terms))
    except Exception as error:  # noqa: BLE001 -- a client of others raises what it likes
        answer = Answer(error=f"{type(error).__name__}: {error}")
    print(msgspec.json.encode(answer).decode())  # noqa: T201 -- its one output


async def _pay_by_pympp(url: str, terms: PayerTerms) -> Answer:
    import_account()  # before pympp imports it, which would lift the recursion limit (F-02)
    from eth_account import Account  # noqa: PLC0415
    from mpp.client.transport import PaymentTransport  # noqa: PLC0415
    from mpp.methods.evm.client import AuthorizationConfig, evm  # noqa: PLC0415

    method = evm(
        account=Account.from_key(terms.key),
        currency=terms.token,
        chain_id=terms.chain_id,
        decimals=terms.decimals,
        authorization=AuthorizationConfig(name=terms.token_name, version=terms.token_version),
    )
    async with httpx.AsyncClient(
        transport=PaymentTransport(methods=[method]), timeout=_TIMEOUT_S
    ) as client:
        return _read(await client.get(url))


async def _pay_by_x402(url: str, terms: PayerTerms) -> Answer:
    from eth_account import Account  # noqa: PLC0415
    from x402 import x402Client  # noqa: PLC0415
    from x402.http.clients.httpx import wrapHttpxWithPayment  # noqa: PLC0415
    from x402.mechanisms.evm.exact import ExactEvmClientScheme  # noqa: PLC0415

    signer = Account.from_key(terms.key)
    scheme = x402Client().set_spend_controls({"allowed_assets": True})
    scheme.register("eip155:*", ExactEvmClientScheme(signer))
    async with wrapHttpxWithPayment(scheme, timeout=_TIMEOUT_S) as client:
        return _read(await client.get(url))


async def _pay_by_session(url: str, terms: PayerTerms) -> Answer:
    """Pay as this project's client does: open a channel, sign a voucher, and close."""
    from channel.client.policy.policy import Policy, TokenLimits  # noqa: PLC0415
    from channel.wire.encoding import parse_address  # noqa: PLC0415
    from mpp_session.agent.client import open_client  # noqa: PLC0415

    limits = TokenLimits(
        chain_id=terms.chain_id,
        token=parse_address(terms.token),
        unit_price_max={terms.unit: terms.price},
        deposit_max=10 * terms.price,
        budget=10 * terms.price,
    )
    async with open_client(
        rpc_url=terms.rpc_url,
        private_key=terms.key,
        policy=Policy(limits=(limits,), allow_loopback_http=True),
        store=terms.store,
    ) as client:
        answer = _read(await client.get(url))
        await client.payments.close(url)
        return answer


def _read(answer: httpx.Response) -> Answer:
    return Answer(
        status=answer.status_code,
        text=answer.text,
        receipt=answer.headers.get("payment-receipt"),
        response=answer.headers.get("payment-response"),
    )


_PAYERS: Final[dict[str, Any]] = {
    "pympp": _pay_by_pympp,
    "x402-python": _pay_by_x402,
    "session": _pay_by_session,
}


if __name__ == "__main__":
    main()
