"""Unpredictable ids, many from one call of the operating system."""

import os

from channel.engine.ids import RandomIds


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
