"""openWith*, topUpWith*: the payer signs, anyone submits (EIP-3009 and Permit2)."""

import json
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode

from channel.verify.typed_data import keccak
from local_chain import UNLIMITED, ZERO_ADDRESS, Account, RevertedError
from tests.settlement.contracts.world import DEPOSIT, ONE_HOUR_S, PLENTY, World, reverts

PERMIT2 = "0x000000000022d473030f116ddee9f6b43ac78ba3"
OTHER = "0x" + "11" * 20
VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "evm_session.json").read_text(encoding="utf-8")
)
RECEIVE_TYPE = [
    {"name": "from", "type": "address"},
    {"name": "to", "type": "address"},
    {"name": "value", "type": "uint256"},
    {"name": "validAfter", "type": "uint256"},
    {"name": "validBefore", "type": "uint256"},
    {"name": "nonce", "type": "bytes32"},
]
PERMIT_TYPE = [
    {"name": "permitted", "type": "TokenPermissions"},
    {"name": "spender", "type": "address"},
    {"name": "nonce", "type": "uint256"},
    {"name": "deadline", "type": "uint256"},
]
TOKEN_PERMISSIONS = [
    {"name": "token", "type": "address"},
    {"name": "amount", "type": "uint256"},
]
OPEN_WITNESS = [
    {"name": "payee", "type": "address"},
    {"name": "salt", "type": "bytes32"},
    {"name": "authorizedSigner", "type": "address"},
]
TOP_UP_WITNESS = [{"name": "channelId", "type": "bytes32"}]


def open_nonce(payer: str, terms: tuple[Any, ...]) -> bytes:
    payee, token, _, salt, signer = terms
    types = ["address", "address", "address", "bytes32", "address"]
    return keccak(encode(types, [payer, payee, token, salt, signer]))


def top_up_nonce(channel_id: bytes, amount: int, funder: str, salt: bytes) -> bytes:
    types = ["bytes32", "uint128", "address", "bytes32"]
    return keccak(encode(types, [channel_id, amount, funder, salt]))


def authorization(
    world: World, funder: Account, amount: int, nonce: bytes, **changed: Any
) -> tuple[Any, ...]:
    """from, validAfter, validBefore, nonce, signature: signed under the token's own domain."""
    window = {"validAfter": 0, "validBefore": world.chain.now() + ONE_HOUR_S}
    message = {"from": funder.address, "to": world.escrow.address, "value": amount}
    message |= {"nonce": nonce, **window, **changed}
    domain = {"name": "Dev USD", "version": "1", "chainId": world.chain.chain_id}
    domain["verifyingContract"] = world.token.address
    signature = world.sign_typed(
        funder, domain, {"ReceiveWithAuthorization": RECEIVE_TYPE}, message
    )
    return funder.address, message["validAfter"], message["validBefore"], nonce, signature


def open_authorized(
    world: World, terms: tuple[Any, ...] | None = None, **changed: Any
) -> tuple[Any, ...]:
    """All arguments of openWithAuthorization, signed by the payer."""
    terms = terms or world.terms()
    nonce = open_nonce(world.payer.address, terms)
    return *terms, *authorization(world, world.payer, terms[2], nonce, **changed)


def top_up_authorized(
    world: World, channel_id: bytes, amount: int, funder: Account, salt: bytes = bytes(32)
) -> tuple[Any, ...]:
    """All arguments of topUpWithAuthorization."""
    nonce = top_up_nonce(channel_id, amount, funder.address, salt)
    payer, after, before, nonce, signature = authorization(world, funder, amount, nonce)
    return channel_id, amount, payer, salt, after, before, nonce, signature


def permit(
    world: World,
    funder: Account,
    amount: int,
    witnessed: tuple[str, list[dict[str, str]], dict[str, Any]],
    **changed: Any,
) -> tuple[str, int, int, bytes]:
    """from, nonce, deadline, signature of a PermitWitnessTransferFrom."""
    kind, fields, values = witnessed
    message: dict[str, Any] = {
        "permitted": {"token": world.token.address, "amount": amount},
        "spender": world.escrow.address,
        "nonce": 5,
        "deadline": world.chain.now() + ONE_HOUR_S,
        "witness": values,
        **changed,
    }
    types = {
        "PermitWitnessTransferFrom": [*PERMIT_TYPE, {"name": "witness", "type": kind}],
        "TokenPermissions": TOKEN_PERMISSIONS,
        kind: fields,
    }
    domain = {
        "name": "Permit2",
        "chainId": world.chain.chain_id,
        "verifyingContract": PERMIT2,
    }
    signature = world.sign_typed(funder, domain, types, message)
    return funder.address, message["nonce"], message["deadline"], signature


def open_permitted(
    world: World, terms: tuple[Any, ...] | None = None, **changed: Any
) -> tuple[Any, ...]:
    """All arguments of openWithPermit2; the payer has approved Permit2."""
    payee, _, deposit, salt, signer = terms = terms or world.terms()
    world.token.send("approve", PERMIT2, UNLIMITED, sender=world.payer.address)
    values = {"payee": payee, "salt": salt, "authorizedSigner": signer}
    witness = ("ChannelOpenWitness", OPEN_WITNESS, values)
    return *terms, *permit(world, world.payer, deposit, witness, **changed)


def top_up_permitted(
    world: World, channel_id: bytes, amount: int, funder: Account
) -> tuple[Any, ...]:
    """All arguments of topUpWithPermit2; the funder has approved Permit2."""
    world.token.send("approve", PERMIT2, UNLIMITED, sender=funder.address)
    witness = ("ChannelTopUpWitness", TOP_UP_WITNESS, {"channelId": channel_id})
    return channel_id, amount, *permit(world, funder, amount, witness)


@pytest.fixture(params=["Authorization", "Permit2"])
def rail(request: pytest.FixtureRequest) -> str:
    """Each test runs over both ways to fund."""
    return str(request.param)


def open_arguments(world: World, rail: str, *terms: Any, **changed: Any) -> tuple[Any, ...]:
    make = open_authorized if rail == "Authorization" else open_permitted
    return make(world, *terms, **changed)


def top_up_arguments(world: World, rail: str, *arguments: Any) -> tuple[Any, ...]:
    make = top_up_authorized if rail == "Authorization" else top_up_permitted
    return make(world, *arguments)


@pytest.mark.parametrize("signer", [ZERO_ADDRESS, OTHER])
def test_a_stranger_opens_the_payers_channel(world: World, rail: str, signer: str) -> None:
    """CONTRACT-01, CONTRACT-09, CONTRACT-10, RELAY-06: `from` is the payer and pays."""
    arguments = open_arguments(world, rail, world.terms(signer=signer))
    function = f"openWith{rail}"
    receipt = world.escrow.send(function, *arguments, sender=world.stranger.address)
    channel_id = world.id_of(world.payer.address, world.terms(signer=signer))
    name, values = world.only_event(receipt)
    assert (name, values["payer"]) == ("ChannelOpened", world.payer.address)
    found = world.channel(channel_id)
    assert (found.payer, found.deposit) == (world.payer.address, DEPOSIT)
    assert world.balance(world.payer.address) == PLENTY - DEPOSIT


def test_an_overtaken_open_leaves_the_intended_channel(world: World, rail: str) -> None:
    """AMB-10, F-83: the second submitter's error says that the signed channel exists."""
    arguments = open_arguments(world, rail)
    world.escrow.send(f"openWith{rail}", *arguments, sender=world.stranger.address)
    with reverts("ChannelAlreadyExists"):
        world.escrow.send(f"openWith{rail}", *arguments, sender=world.payee.address)
    found = world.channel(world.id_of(world.payer.address, world.terms()))
    assert (found.deposit, found.settled) == (DEPOSIT, 0)
    assert (found.payer, found.payee) == (world.payer.address, world.payee.address)


@pytest.mark.parametrize("field", ["payee", "deposit", "salt", "signer", "from"])
def test_a_relayer_can_change_nothing(world: World, rail: str, field: str) -> None:
    """CONTRACT-09, CONTRACT-10, F-83: any other term, and nothing moves."""
    arguments = list(open_arguments(world, rail))
    place = {"payee": 0, "deposit": 2, "salt": 3, "signer": 4, "from": 5}[field]
    arguments[place] = {"deposit": DEPOSIT - 1, "salt": b"\x01" * 32}.get(field, OTHER)
    with pytest.raises(RevertedError):
        world.escrow.send(f"openWith{rail}", *arguments)
    assert world.balance(world.escrow.address) == 0
    assert world.balance(world.payer.address) == PLENTY


def test_a_nonce_not_derived_from_the_terms_is_refused(world: World) -> None:
    """CONTRACT-09: NonceMismatch, before the token is touched."""
    terms = world.terms()
    signed = authorization(world, world.payer, DEPOSIT, b"\x07" * 32)
    with reverts("NonceMismatch"):
        world.escrow.send("openWithAuthorization", *terms, *signed)
    channel_id = world.open()
    payer, after, before, nonce, signature = signed
    with reverts("NonceMismatch"):
        world.escrow.send(
            "topUpWithAuthorization",
            *(channel_id, DEPOSIT, payer, bytes(32), after, before, nonce, signature),
        )


def test_an_authorization_outside_its_window_is_refused(world: World) -> None:
    """OPEN-05: by the token, whose error comes through."""
    now = world.chain.now()
    windows: list[dict[str, Any]] = [{"validBefore": now - 1}, {"validAfter": now + ONE_HOUR_S}]
    for window in windows:
        with pytest.raises(RevertedError):
            world.escrow.send("openWithAuthorization", *open_authorized(world, **window))


def test_a_cancelled_authorization_opens_nothing(world: World) -> None:
    """F-88: between check and broadcast the payer may cancel."""
    arguments = open_authorized(world)
    nonce = arguments[8]
    domain = {"name": "Dev USD", "version": "1", "chainId": world.chain.chain_id}
    domain["verifyingContract"] = world.token.address
    fields = [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]
    message = {"authorizer": world.payer.address, "nonce": nonce}
    signature = world.sign_typed(world.payer, domain, {"CancelAuthorization": fields}, message)
    world.token.send("cancelAuthorization", world.payer.address, nonce, signature)
    with reverts("AuthorizationUsedOrCanceled", world.payer.address, nonce, within="DevUSD"):
        world.escrow.send("openWithAuthorization", *arguments)


def test_a_stranger_cannot_take_the_authorization_to_the_token(world: World) -> None:
    """RELAY-06: receiveWithAuthorization pays only the caller it names."""
    payee, token, deposit, salt, signer, payer, after, before, nonce, signature = open_authorized(
        world
    )
    with reverts("CallerMustBePayee", world.escrow.address, within="DevUSD"):
        world.token.send(
            "receiveWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
            *(payer, world.escrow.address, deposit, after, before, nonce, signature),
            sender=world.stranger.address,
        )
    with pytest.raises(RevertedError):
        world.token.send(
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
            *(payer, world.escrow.address, deposit, after, before, nonce, signature),
        )
    assert (payee, token, salt, signer) == (*world.terms()[:2], *world.terms()[3:])


@pytest.mark.parametrize(
    "changed",
    [
        {"spender": OTHER},
        {"deadline": 1},
        {"permitted": {"token": OTHER, "amount": DEPOSIT}},
        {"permitted": {"token": None, "amount": DEPOSIT + 1}},
        {"witness": {"payee": OTHER, "salt": bytes(32), "authorizedSigner": ZERO_ADDRESS}},
    ],
)
def test_a_permit_for_anything_else_is_refused(world: World, changed: dict[str, Any]) -> None:
    """CONTRACT-10, OPEN-06, F-90: spender, deadline, token, amount and witness are all signed."""
    if "permitted" in changed and changed["permitted"]["token"] is None:
        changed = {"permitted": {**changed["permitted"], "token": world.token.address}}
    with pytest.raises(RevertedError):
        world.escrow.send("openWithPermit2", *open_permitted(world, **changed))
    assert world.balance(world.escrow.address) == 0


def test_a_permit2_nonce_works_once(world: World) -> None:
    """F-90: the bitmap refuses the second use, for another channel too."""
    world.escrow.send("openWithPermit2", *open_permitted(world))
    with pytest.raises(RevertedError):
        world.escrow.send("openWithPermit2", *open_permitted(world, world.terms(salt=1)))


@pytest.mark.parametrize(("amount", "error"), [(0, "ZeroDeposit"), (2**88, "DepositOverflow")])
def test_the_same_bounds_hold_on_the_relayed_paths(
    world: World, rail: str, amount: int, error: str
) -> None:
    """CONTRACT-13: zero and too much, on opens and top-ups."""
    arguments = open_arguments(world, rail, world.terms(deposit=amount))
    with reverts(error):
        world.escrow.send(f"openWith{rail}", *arguments)
    arguments = top_up_arguments(world, rail, world.open(), amount, world.payer)
    with reverts(error):
        world.escrow.send(f"topUpWith{rail}", *arguments)


@pytest.mark.parametrize("funder", ["payer", "stranger"])
def test_a_relayed_top_up_that_the_payer_sends_cancels_a_pending_close(
    world: World, rail: str, funder: str
) -> None:
    """CONTRACT-03, TOPUP-05: its own transaction shows that the channel stays open."""
    channel_id = world.open()
    world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    arguments = top_up_arguments(world, rail, channel_id, 77, getattr(world, funder))
    receipt = world.escrow.send(f"topUpWith{rail}", *arguments, sender=world.payer.address)
    events = [name for name, _ in world.escrow.events(receipt)]
    assert events == ["CloseRequestCancelled", "TopUp"]
    found = world.channel(channel_id)
    assert (found.deposit, found.close_requested_at) == (DEPOSIT + 77, 0)


@pytest.mark.parametrize("sender", ["payee", "stranger"])
def test_a_top_up_kept_from_before_does_not_cancel_the_payers_exit(
    world: World, rail: str, sender: str
) -> None:
    """O-29, AMB-27: signed by the payer, kept, and sent ten seconds before the grace ends."""
    channel_id = world.open()
    kept = top_up_arguments(world, rail, channel_id, 77, world.payer)
    world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    asked_at = world.channel(channel_id).close_requested_at
    world.chain.travel(15 * 60 - 10)
    receipt = world.escrow.send(f"topUpWith{rail}", *kept, sender=getattr(world, sender).address)
    assert [name for name, _ in world.escrow.events(receipt)] == ["TopUp"]
    found = world.channel(channel_id)
    assert (found.deposit, found.close_requested_at) == (DEPOSIT + 77, asked_at)
    world.chain.travel(10)
    world.escrow.send("withdraw", channel_id, sender=world.payer.address)
    assert world.balance(world.payer.address) == PLENTY


def test_anyone_elses_top_up_leaves_the_exit_open(world: World, rail: str) -> None:
    """TOPUP-05, AMB-25, F-62: credited, refunded to the payer, and no hostage."""
    channel_id = world.open()
    world.escrow.send("requestClose", channel_id, sender=world.payer.address)
    asked_at = world.channel(channel_id).close_requested_at
    world.chain.travel(15 * 60)
    arguments = top_up_arguments(world, rail, channel_id, 1, world.stranger)
    receipt = world.escrow.send(f"topUpWith{rail}", *arguments, sender=world.stranger.address)
    assert [name for name, _ in world.escrow.events(receipt)] == ["TopUp"]
    assert world.channel(channel_id).close_requested_at == asked_at
    world.escrow.send("withdraw", channel_id, sender=world.payer.address)
    assert world.balance(world.payer.address) == PLENTY + 1
    assert world.balance(world.stranger.address) == PLENTY - 1


def test_a_top_up_cannot_be_replayed(world: World, rail: str) -> None:
    """F-29: the same signature credits once."""
    channel_id = world.open()
    arguments = top_up_arguments(world, rail, channel_id, 77, world.payer)
    world.escrow.send(f"topUpWith{rail}", *arguments)
    with pytest.raises(RevertedError):
        world.escrow.send(f"topUpWith{rail}", *arguments)
    assert world.channel(channel_id).deposit == DEPOSIT + 77


def test_a_top_up_goes_to_the_channel_it_was_signed_for(world: World, rail: str) -> None:
    """CONTRACT-09, CONTRACT-10: no other channel, no other amount; none that is not or ended."""
    channel_id, other_id = world.open(), world.open(salt=1)
    arguments = top_up_arguments(world, rail, channel_id, 77, world.payer)
    for place, value in ((0, other_id), (1, 78)):
        changed = [*arguments]
        changed[place] = value
        with pytest.raises(RevertedError):
            world.escrow.send(f"topUpWith{rail}", *changed)
    world.escrow.send("close", channel_id, 0, b"", sender=world.payee.address)
    with reverts("ChannelFinalized"):
        world.escrow.send(f"topUpWith{rail}", *arguments)
    with reverts("ChannelNotFound"):
        world.escrow.send(
            f"topUpWith{rail}", *top_up_arguments(world, rail, b"\x01" * 32, 77, world.payer)
        )


def test_an_open_cannot_be_spent_as_a_top_up(world: World) -> None:
    """F-23: five words never hash to the same as four, and the token takes each nonce once."""
    channel_id = world.open()
    terms = world.terms(salt=9)
    payer, after, before, nonce, signature = open_authorized(world, terms)[5:]
    with reverts("NonceMismatch"):
        world.escrow.send(
            "topUpWithAuthorization",
            *(channel_id, DEPOSIT, payer, bytes(32), after, before, nonce, signature),
        )


def test_the_vectors_nonces_and_calldata_are_ours() -> None:
    """CONTRACT-09: golden data of the draft's formulas."""
    for vector in VECTORS["eip3009Open"]:
        salt = bytes.fromhex(vector["salt"][2:])
        terms = (vector["payee"], vector["token"], 0, salt, vector["authorizedSigner"])
        assert open_nonce(vector["from"], terms).hex() == vector["nonce"][2:]
    for vector in VECTORS["eip3009TopUp"]:
        nonce = top_up_nonce(
            bytes.fromhex(vector["channelId"][2:]),
            int(vector["additionalDeposit"]),
            vector["from"],
            bytes.fromhex(vector["topUpSalt"][2:]),
        )
        assert nonce.hex() == vector["nonce"][2:]
