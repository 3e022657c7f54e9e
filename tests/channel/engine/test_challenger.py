"""Whose challenge it is, and what was promised with it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.engine import Engine, Offer
from channel.engine.challenger import read_variant
from channel.errors import ChallengeExpiredError, ChallengeNotFoundError
from channel.methods.evm.method import EVM
from channel.types import Address
from channel.verify.challenge_id import ChallengeBinder
from channel.wire.challenge import Challenge, parse_opaque
from channel.wire.credential import Credential
from tests.channel.selling import PRICE, SECRET, SETTINGS, Provider, open_provider


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    async with open_provider(tmp_path) as opened:
        opened.payer.open_on_chain()
        yield opened


def credential(
    provider: Provider, offer: Offer | None = None, engine: Engine | None = None
) -> Credential:
    challenge = (engine or provider.engine).challenger.issue(offer or provider.offer)
    return provider.payer.credential(challenge, provider.payer.voucher(50))


def with_secrets(provider: Provider, *secrets: bytes) -> Engine:
    return Engine(
        ledger=provider.ledger,
        chain=provider.chain,
        binder=ChallengeBinder(secrets),
        settings=SETTINGS,
        now=provider.clock,
    )


async def test_no_two_challenges_have_one_id(provider: Provider) -> None:
    """CHAL-10: 128 random bits each, and the route's scope."""
    challenges = [provider.engine.challenger.issue(provider.offer) for _ in range(100)]
    assert len({challenge.id for challenge in challenges}) == 100
    scope = parse_opaque(challenges[0].opaque or "")
    assert len(scope.pop("nonce")) == 22
    assert scope == {"http_method": "GET", "route": "/paid"}


async def test_a_bound_challenge_keeps_its_price_when_prices_change(provider: Provider) -> None:
    """Decision 6, CHAL-06."""
    promised = credential(provider)
    dearer = replace(provider.offer, request=replace(provider.offer.request, unit_price=PRICE * 2))
    authenticated = provider.engine.challenger.authenticate(promised, [dearer])
    assert authenticated.asked.unit_price == PRICE


@pytest.mark.parametrize(
    "change",
    [
        {"currency": Address(b"\x01" * 20)},
        {"recipient": Address(b"\x01" * 20)},
        {"chain_id": 1},
        {"escrow": Address(b"\x01" * 20)},
        {"unit_type": "image"},
        {"fee_payer": True},
        {"credential_types": ("hash", "permit2")},
        {"permit2": Address(b"\x01" * 20)},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_where_money_goes_must_be_as_it_is_now(
    provider: Provider, change: dict[str, object]
) -> None:
    """CHAL-06, F-31, F-105: a challenge from before such a change is refused."""
    promised = credential(provider)
    changed = replace(provider.offer, request=replace(provider.offer.request, **change))
    with pytest.raises(ChallengeNotFoundError):
        provider.engine.challenger.authenticate(promised, [changed])


async def test_what_is_for_display_may_differ(provider: Provider) -> None:
    """CHAL-06: suggestedDeposit, description and channelId are not pinned."""
    promised = credential(provider)
    asked = replace(provider.offer.request, suggested_deposit=5, description="Jokes")
    provider.engine.challenger.authenticate(promised, [replace(provider.offer, request=asked)])


async def test_a_challenge_is_good_for_its_own_route_alone(provider: Provider) -> None:
    """CHAL-10, F-31: another method, path or variant is another offer."""
    promised = credential(provider)
    for change in ({"http_method": "POST"}, {"route": "/dear"}, {"variant": "large"}):
        with pytest.raises(ChallengeNotFoundError):
            provider.engine.challenger.authenticate(promised, [replace(provider.offer, **change)])


async def test_a_challenge_lives_until_the_second_it_expires(provider: Provider) -> None:
    """CHAL-07, CHAL-14: many times, then never again."""
    promised = credential(provider)
    for _ in range(3):
        assert not provider.engine.challenger.authenticate(promised, [provider.offer]).is_expired
    provider.clock.advance(298)
    assert not provider.engine.challenger.authenticate(promised, [provider.offer]).is_expired
    provider.clock.advance(2)
    assert provider.engine.challenger.authenticate(promised, [provider.offer]).is_expired


async def test_secrets_rotate_with_overlap(provider: Provider) -> None:
    """CHAL-08: the old secret's challenges live on until it is dropped."""
    new = b"another secret of thirty-two bytes"
    old = credential(provider)
    rotated, dropped = with_secrets(provider, new, SECRET), with_secrets(provider, new)
    rotated.challenger.authenticate(old, [provider.offer])
    dropped.challenger.authenticate(credential(provider, engine=rotated), [provider.offer])
    with pytest.raises(ChallengeNotFoundError):
        dropped.challenger.authenticate(old, [provider.offer])


async def test_a_hint_names_the_payers_channel(provider: Provider) -> None:
    """CHAL-15: and changes nothing that is pinned."""
    challenge = provider.engine.challenger.issue(provider.offer, provider.payer.key.channel_id)
    assert EVM.parse_request(challenge.request).channel_id == provider.payer.key.channel_id
    hinted = provider.payer.credential(challenge, provider.payer.voucher(50))
    provider.engine.challenger.authenticate(hinted, [provider.offer])


async def test_issuing_remembers_nothing(provider: Provider) -> None:
    """F-100, F-109: another worker with the same secret takes the challenge."""
    await asyncio.sleep(0)
    with_secrets(provider, SECRET).challenger.authenticate(credential(provider), [provider.offer])


def bound(genuine: Challenge, **changes: str | None) -> Challenge:
    """Return a challenge of which another program with our secret has changed this much."""
    changed = replace(genuine, **changes)
    binding = ChallengeBinder([SECRET]).bind(
        realm=changed.realm,
        method=changed.method,
        intent=changed.intent,
        request=changed.request,
        expires=changed.expires,
        digest=changed.digest,
        header=changed.header,
        opaque=changed.opaque,
    )
    return replace(changed, id=binding)


@pytest.mark.parametrize(
    "change",
    [
        {"realm": "other.example.com"},
        {"header": "Payment-Authorization"},
        {"digest": "sha-256=:AAAA:"},
        {"opaque": None},
        {"opaque": "{"},
        {"request": "{"},
    ],
    ids=str,
)
async def test_a_secret_alone_makes_no_valid_challenge(
    provider: Provider, change: dict[str, str | None]
) -> None:
    """O-98, CHAL-05, CHAL-11, AMB-03: another program that shares the secret sells what is its own.

    No challenge of a session binds a body, so one with a digest is not of this engine.
    """
    genuine = provider.engine.challenger.issue(provider.offer)
    provider.engine.challenger.authenticate(
        provider.payer.credential(bound(genuine), provider.payer.voucher(50)), [provider.offer]
    )
    foreign = provider.payer.credential(bound(genuine, **change), provider.payer.voucher(50))
    with pytest.raises(ChallengeNotFoundError):
        provider.engine.challenger.authenticate(foreign, [provider.offer])


@pytest.mark.parametrize("expires", [None, "tomorrow"])
async def test_a_challenge_without_an_end_has_ended(
    provider: Provider, expires: str | None
) -> None:
    """O-98, F-112: its price would be promised for ever."""
    endless = bound(provider.engine.challenger.issue(provider.offer), expires=expires)
    credential = provider.payer.credential(endless, provider.payer.voucher(50))
    with pytest.raises(ChallengeExpiredError):
        provider.engine.challenger.authenticate(credential, [provider.offer]).require_current()


@pytest.mark.parametrize("opaque", [None, "{", "bnVsbA", '{"variant":1}'])
async def test_an_opaque_that_states_no_scope_states_no_variant(opaque: str | None) -> None:
    """O-98: read before the challenge's id is checked, so a stranger may have written it."""
    assert read_variant(opaque) == ""
