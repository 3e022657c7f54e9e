"""One client uses a channel at a time, and a claim ends with the process that made it."""

import subprocess
import sys
from pathlib import Path

from channel.client.store.locks import ChannelLocks
from channel.types import Address, ChannelId, ChannelKey


def key_of(number: int) -> ChannelKey:
    return ChannelKey(1, Address(bytes(20)), ChannelId(bytes([number]) * 32))


def test_a_claim_keeps_others_of_this_process_out(tmp_path: Path) -> None:
    """F-41: until it is closed, and for that channel alone."""
    first, second = ChannelLocks(tmp_path / "claims"), ChannelLocks(tmp_path / "claims")
    assert first.take(key_of(1))
    assert first.take(key_of(1))
    assert not second.take(key_of(1))
    assert second.take(key_of(2))
    first.close()
    assert second.take(key_of(1))
    second.close()
    assert ChannelLocks(tmp_path / "claims").take(key_of(255))


OTHER = """
import sys
from pathlib import Path
from channel.client.store.locks import ChannelLocks
from channel.types import Address, ChannelId, ChannelKey

claims = ChannelLocks(Path(sys.argv[1]))
print([claims.take(ChannelKey(1, Address(bytes(20)), ChannelId(bytes([n]) * 32))) for n in (1, 2)])
sys.stdout.flush()
sys.stdin.read()
"""


def test_a_claim_keeps_other_processes_out_and_ends_with_its_own(tmp_path: Path) -> None:
    """F-41: also when the process is killed."""
    path = tmp_path / "claims"
    ours = ChannelLocks(path)
    assert ours.take(key_of(1))
    with subprocess.Popen(  # noqa: S603 -- ours
        [sys.executable, "-c", OTHER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "[False, True]\n"
        assert not ours.take(key_of(2))
        ChannelLocks(path).close()  # a descriptor that is closed in this process lets go of nothing
        assert not ours.take(key_of(2))
        other.kill()
    assert ours.take(key_of(2))
    assert path.stat().st_mode & 0o777 == 0o600
    ours.close()
