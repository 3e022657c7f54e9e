"""The stages from an offer to a request that may be sent."""

from channel.client.policy.stages import NEXT, Stage


def ways(stage: Stage = Stage.OBTAIN, before: tuple[Stage, ...] = ()) -> list[tuple[Stage, ...]]:
    """Every way to `SEND`. A stage that came before would be a loop."""
    assert stage not in before
    way = (*before, stage)
    if stage is Stage.SEND:
        return [way]
    following = {after for (at, _), after in NEXT.items() if at is stage}
    return [found for after in following for found in ways(after, way)]


def test_every_way_ends_by_sending_after_one_signature() -> None:
    """CLIENT-06: an amount is durable before the voucher is sent."""
    found = ways()
    assert {stage for way in found for stage in way} == set(Stage)
    assert all(way.count(Stage.SIGN) == 1 for way in found)


def test_a_deposit_is_attached_only_if_no_other_request_waits_or_a_head_was_refused() -> None:
    """VCH-06: what waits for a deposit goes on as soon as it is made."""
    before = {at for at, after in NEXT.items() if after is Stage.ATTACH}
    assert before == {(Stage.SIGN, "alone"), (Stage.HEAD, "refused")}


def test_an_opening_transaction_is_presented_before_the_first_content_request() -> None:
    assert NEXT[Stage.DEPOSIT, "sent"] is Stage.PRESENT
    assert [at for at, after in NEXT.items() if after is Stage.PRESENT] == [(Stage.DEPOSIT, "sent")]
