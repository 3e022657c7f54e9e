"""x402's batch settlement: one voucher from its header to its answer's header, in memory.

Runs in an environment of its own, made by scripts/bench; prints microseconds a voucher, run by run,
as JSON. Its channels are new, so it reads nothing from a chain.
"""

import json
import sys
import time
from typing import Any

from eth_account import Account
from x402.http.utils import (
    decode_payment_signature_header,
    encode_payment_response_header,
    encode_payment_signature_header,
)
from x402.mechanisms.evm.batch_settlement.client.voucher import sign_voucher
from x402.mechanisms.evm.batch_settlement.server.scheme import (
    BatchSettlementEvmScheme,
    BatchSettlementEvmSchemeServerConfig,
)
from x402.mechanisms.evm.batch_settlement.server.settle import handle_before_settle
from x402.mechanisms.evm.batch_settlement.server.storage import Channel
from x402.mechanisms.evm.batch_settlement.server.verify import (
    handle_after_verify,
    handle_before_verify,
)
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig
from x402.mechanisms.evm.batch_settlement.utils import compute_channel_id
from x402.schemas import PaymentPayload, PaymentRequirements
from x402.schemas.hooks import SettleContext, VerifyContext, VerifyResultContext

NETWORK = "eip155:31337"
PRICE = 25
DELAY_S = 86_400
RUN = 50
PAYER = Account.from_key(b"\x11" * 32)
RECEIVER, AUTHORIZER, TOKEN = ("0x" + pair * 20 for pair in ("b2", "d4", "c3"))
REQUIREMENTS = PaymentRequirements(
    scheme="batch-settlement",
    network=NETWORK,
    asset=TOKEN,
    amount=str(PRICE),
    pay_to=RECEIVER,
    max_timeout_seconds=60,
    extra={
        "receiverAuthorizer": AUTHORIZER,
        "withdrawDelay": DELAY_S,
        "name": "USDC",
        "version": "2",
    },
)


class Signer:
    """The payer's key, in the form that x402's client uses."""

    address = PAYER.address

    def sign_typed_data(self, domain: Any, types: Any, primary: str, message: Any) -> bytes:
        """Sign EIP-712 data."""
        wanted = {primary: [_field(field) for field in types[primary]]}
        return bytes(PAYER.sign_typed_data(domain, wanted, message).signature)


def _field(field: Any) -> dict[str, str]:
    if isinstance(field, dict):
        return field
    return {"name": field.name, "type": field.type}


def serve(scheme: BatchSettlementEvmScheme, header: str) -> str:
    """Take one voucher through the scheme's own steps; return the answer's header."""
    payload = decode_payment_signature_header(header)
    verified = handle_before_verify(scheme, VerifyContext(payload, REQUIREMENTS))
    kept = handle_after_verify(
        scheme, VerifyResultContext(payload, REQUIREMENTS, result=verified.result)
    )
    if kept is not None or not verified.result.is_valid:
        raise SystemExit(f"not verified: {verified} {kept}")
    settled = handle_before_settle(scheme, SettleContext(payload, REQUIREMENTS))
    if not settled.result.success:
        raise SystemExit(f"not taken: {settled}")
    answer: str = encode_payment_response_header(settled.result)
    return answer


def main() -> None:
    """Measure the requested number of vouchers."""
    vouchers = int(sys.argv[1])
    config = ChannelConfig(
        PAYER.address, PAYER.address, RECEIVER, AUTHORIZER, TOKEN, DELAY_S, "0x" + "00" * 32
    )
    channel_id = compute_channel_id(config, NETWORK)
    scheme = BatchSettlementEvmScheme(
        RECEIVER, BatchSettlementEvmSchemeServerConfig(withdraw_delay=DELAY_S)
    )
    opened = Channel(
        channel_id, config, balance=str(2**80), onchain_synced_at=int(time.time() * 1000)
    )
    scheme.get_storage().update_channel(channel_id, lambda _: opened)
    headers = []
    for number in range(1, vouchers + 1):
        voucher = sign_voucher(Signer(), channel_id, str(PRICE * number), NETWORK)
        payload = {
            "type": "voucher",
            "channelConfig": config.to_dict(),
            "voucher": voucher.to_dict(),
        }
        sent = PaymentPayload(payload=payload, accepted=REQUIREMENTS)
        headers.append(encode_payment_signature_header(sent))
    times = []
    for start in range(0, vouchers, RUN):
        run = headers[start : start + RUN]
        began = time.perf_counter()
        for header in run:
            serve(scheme, header)
        times.append((time.perf_counter() - began) / len(run) * 1e6)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
