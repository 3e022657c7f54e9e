"""Errors that cross the socket of a wallet come out as they went in."""

import httpx
import msgspec
import pytest

from channel import errors
from channel.errors import AgentError, MppSessionError, RefusedOffer, WireError
from channel.types import Address
from mpp_session.agent.wallet_errors import (
    WalletFailure,
    decode_failure,
    encode_failure,
    status_of,
)
from settlement.errors import NoGasError, UntrustedEscrowError, WalletSendsError

OFFER = RefusedOffer(method="evm/session", chain_id=1, amount=2**100, needs="another chain")
MADE: list[MppSessionError] = [
    AgentError("words"),
    errors.OfferRefusedError(
        field="recipient", asked="0x01", allowed=7, origin="https://a:443", offers=[OFFER, OFFER]
    ),
    errors.BudgetExceededError(limit="budget", asked=2**90, allowed=1, origin="https://a:443"),
    errors.PolicyRefusedError(
        "too much", code="envelope_exceeded", field="envelope.r.amount", asked=5, retry_at=1.5
    ),
    errors.ApprovalPendingError("May it?", approval_id="a1", expires_at=9.0),
    errors.CannotFundError(account=b"\x01" * 20, origin="https://a:443", needs={"hash": "ether"}),
    errors.DepositPendingError(origin="https://a:443", waited_s=3.5),
    errors.ChargePendingError(origin="https://a:443", amount=4, until="noon", outcome="It waits."),
    errors.OverclaimError(asked=3, allowed=2, received=1),
    errors.UnsettledClaimError(asked=4, allowed=3, received=2, lost=1),
    errors.ReceiptViolationError(field="spent", said=b"\x02", expected=[1]),
    errors.PaymentRefusedError(status=402, problem_type="x", detail="y"),
    errors.PaymentOutcomeUnknownError(idempotency_key="k", reason="broke"),
    errors.ChannelBusyError("busy"),
    errors.ChannelUnusableError("stopped"),
    errors.BodyNotReplayableError("long"),
    errors.StoreError("disk"),
    NoGasError(Address(b"\x03" * 20)),
    UntrustedEscrowError(Address(b"\x04" * 20), "is strange"),
    WalletSendsError(Address(b"\x05" * 20)),
    errors.ChainUnavailableError("no node"),
    errors.ConfigError("no"),
    errors.StoppingError("ends"),
    WireError("bytes"),
]


def _all(kind: type[AgentError]) -> set[type[AgentError]]:
    return {kind}.union(*(_all(sub) for sub in kind.__subclasses__()))


def test_every_agent_error_is_listed_here() -> None:
    ours = {
        one for one in _all(AgentError) if one.__module__.startswith(("channel.", "settlement."))
    }
    assert ours <= {type(error) for error in MADE}


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_arrives_with_type_words_and_fields(error: MppSessionError) -> None:
    raw = msgspec.json.encode(encode_failure(error))
    arrived = decode_failure(msgspec.json.decode(raw, type=WalletFailure))
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    shown = {
        name: str(value) if name in {"said", "expected"} else value
        for name, value in vars(error).items()
    }
    if isinstance(error, errors.ReceiptViolationError):
        shown["said"] = vars(arrived)["said"]  # bytes are shown in their JSON form
    assert vars(arrived) == shown
    assert 400 <= status_of(error) < 600


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout("late"), httpx.DecodingError("gz")]
)
def test_a_broken_connection_arrives_as_httpx_says_it(error: httpx.RequestError) -> None:
    request = httpx.Request("GET", "https://a")
    arrived = decode_failure(encode_failure(error), request=request)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert isinstance(arrived, httpx.RequestError)
    assert arrived.request is request


def test_an_unlisted_error_becomes_its_nearest_listed_base() -> None:
    class OwnRefusedError(errors.OfferRefusedError):
        """Not of this project."""

    error = OwnRefusedError(field="f", asked=None, allowed=True, origin="https://a:443")
    try:
        assert type(decode_failure(encode_failure(error))) is errors.OfferRefusedError
        assert type(decode_failure(encode_failure(errors.InvariantError("bug")))) is AgentError
    finally:
        del OwnRefusedError, error


@pytest.mark.parametrize(
    "failure",
    [
        WalletFailure(name="KeyboardInterrupt", message="m"),
        WalletFailure(name="AgentError", message="m", fields={"more": 1}),
        WalletFailure(name="OverclaimError", message="m", fields={"asked": 1, "allowed": 2}),
        WalletFailure(name="ConnectError", message="m", fields={"more": 1}),
        WalletFailure(
            name="OverclaimError", message="m", fields={"asked": "1", "allowed": 2, "received": 3}
        ),
    ],
)
def test_what_no_wallet_reports_is_refused(failure: WalletFailure) -> None:
    with pytest.raises(WireError):
        decode_failure(failure)
