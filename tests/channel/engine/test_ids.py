"""Unpredictable ids, many from one call of the operating system."""

import copy
import os

from channel.engine.ids import RandomIds, _forget_all


def test_no_id_comes_twice() -> None:
    """F-43: a reservation is fenced by its id, so no two may share one."""
    ids = RandomIds()
    drawn = [ids() for _ in range(2_000)]
    assert len(set(drawn)) == 2_000
    assert {len(one) for one in drawn} == {16}


def test_a_forked_process_draws_its_own() -> None:
    """Workers that were forked after the first id do not repeat each other's."""
    ids = RandomIds()
    ids()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, ids())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 16)
    os.close(reader)
    os.close(writer)
    assert theirs not in {ids() for _ in range(512)}


def test_what_was_drawn_before_a_fork_is_forgotten() -> None:
    """O-98, F-43: one id for two reservations would let one worker spend what another holds."""
    ids = RandomIds()
    ids()
    child = copy.deepcopy(ids)  # as a fork copies it
    unforgotten = copy.deepcopy(ids)
    child.forget()
    drawn = {ids() for _ in range(512)}
    assert unforgotten() in drawn
    assert not drawn & {child() for _ in range(512)}


def test_a_fork_forgets_what_every_source_has_drawn() -> None:
    """O-98, F-43: what runs in the child, whose end tells no one which lines it ran."""
    sources = [RandomIds(), RandomIds()]
    for ids in sources:
        ids()
    unforgotten = [copy.deepcopy(ids) for ids in sources]
    _forget_all()
    for ids, old in zip(sources, unforgotten, strict=True):
        assert not {ids() for _ in range(512)} & {old() for _ in range(255)}
