"""The file between provider and tower: whole lines, each once, also when it is cut or replaced."""

import os
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.limits import TOWER_LINE_BYTES_MAX
from channel.types import ChannelId
from settlement.presigned.authorization import PresignedSettle
from settlement.presigned.file import BEAT, TowerFile, TowerFileReader
from tests.settlement.presigned.test_authorization import KEY, settle


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def add(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def lose(path: Path, *, is_gone: bool) -> None:
    put(path, b"")
    if is_gone:
        path.unlink()


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def others_may(path: Path) -> int:
    return path.stat().st_mode & 0o077


async def numbered(number: int, amount: int = 700) -> PresignedSettle:
    key = replace(KEY, channel_id=ChannelId(number.to_bytes(32, "big")))
    return replace(await settle(amount), key=key)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settles.jsonl"


async def test_what_was_appended_is_read_once_and_after_a_restart_known(path: Path) -> None:
    file, reader = await TowerFile.open(path), TowerFileReader(path)
    first, second, newer = await numbered(1), await numbered(2), await numbered(1, 900)
    await file.append([first, second])
    assert await reader.read_new() == [each.format_line().rstrip() for each in (first, second)]
    assert await reader.read_new() == []
    await file.append([newer])
    assert await reader.read_new() == [newer.format_line().rstrip()]
    again = await TowerFile.open(path)
    assert again.newest == {newer.key: newer, second.key: second}


async def test_it_is_for_its_owner_alone(path: Path) -> None:
    """F-103: each line is worth money to the payee, before its time too."""
    file = await TowerFile.open(path)
    await file.append([await numbered(1)])
    assert others_may(path) == 0


async def test_half_a_line_counts_only_when_its_end_is_there(path: Path) -> None:
    """A copy may be taken in the middle of a write."""
    line = (await numbered(1)).format_line()
    reader = TowerFileReader(path)
    assert await reader.read_new() == []
    put(path, line[:50])
    assert await reader.read_new() == []
    put(path, line)
    assert await reader.read_new() == [line.rstrip()]


async def test_a_line_cut_off_by_a_crash_does_not_swallow_the_next(path: Path) -> None:
    """A process or a machine that died in the middle of a write."""
    whole, cut, later = await numbered(1), await numbered(2), await numbered(3)
    put(path, whole.format_line() + cut.format_line()[:80])
    file = await TowerFile.open(path)
    assert file.newest == {whole.key: whole}
    await file.append([later])
    assert (await TowerFile.open(path)).newest == {whole.key: whole, later.key: later}


async def test_a_full_disk_leaves_whole_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be made durable was not handed out."""
    file = await TowerFile.open(path)
    first, second = await numbered(1), await numbered(2)
    await file.append([first])

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            await file.append([second])
    assert content_of(path) == first.format_line()
    assert file.newest == {first.key: first}
    await file.append([second])
    assert content_of(path) == first.format_line() + second.format_line()


async def test_it_does_not_grow_for_ever(path: Path) -> None:
    """The newest line of each channel takes the place of all, in one step."""
    file, reader = await TowerFile.open(path), TowerFileReader(path)
    kept, ended = await numbered(1), await numbered(2)
    await file.append([ended])
    await reader.read_new()
    file.forget(ended.key)
    for amount in range(1, 1010):
        await file.append([replace(kept, cumulative_amount=amount)])
    assert len(content_of(path).splitlines()) < 20
    newest = replace(kept, cumulative_amount=1009)
    assert (await reader.read_new())[-1] == newest.format_line().rstrip()
    assert (await TowerFile.open(path)).newest == {kept.key: newest}


async def test_a_file_that_took_anothers_place_is_read_from_its_start(
    path: Path, tmp_path: Path
) -> None:
    """As a copying program replaces it."""
    line = (await numbered(1)).format_line()
    put(path, line)
    reader = TowerFileReader(path)
    await reader.read_new()
    beside = tmp_path / "copy"
    shutil.copy(path, beside)
    add(beside, BEAT)
    beside.replace(path)
    assert await reader.read_new() == [line.rstrip(), BEAT.rstrip()]
    put(path, BEAT)  # cut short in place
    assert await reader.read_new() == [BEAT.rstrip()]


async def test_a_longer_file_that_was_copied_over_the_first_is_read_from_its_start(
    path: Path,
) -> None:
    """As after the provider has tidied up: other lines first, and the same file to the system."""
    old, newer, other = await numbered(1), await numbered(1, 900), await numbered(2)
    put(path, old.format_line())
    reader = TowerFileReader(path)
    await reader.read_new()
    put(path, other.format_line() + newer.format_line())
    assert await reader.read_new() == [each.format_line().rstrip() for each in (other, newer)]


@pytest.mark.parametrize("is_gone", [True, False])
async def test_a_file_that_was_removed_or_emptied_is_written_again(
    path: Path, *, is_gone: bool
) -> None:
    """What was handed out counts as handed out: a tower that starts now must find it."""
    file = await TowerFile.open(path)
    first, second = await numbered(1), await numbered(2)
    await file.append([first])
    lose(path, is_gone=is_gone)
    await file.beat()
    assert (await TowerFile.open(path)).newest == {first.key: first}
    await file.append([second])
    assert (await TowerFile.open(path)).newest == {first.key: first, second.key: second}
    assert content_of(path).count(b"\n") == 3


async def test_what_has_no_end_is_not_kept_waiting_for(path: Path) -> None:
    """The reader leaves out a line longer than the export writes, and reads what follows."""
    put(path, b"x" * (TOWER_LINE_BYTES_MAX + 1))
    reader = TowerFileReader(path)
    await reader.read_new()
    good = (await numbered(1)).format_line()
    add(path, b"\n" + good)
    assert (await reader.read_new())[-1] == good.rstrip()


async def test_a_sign_of_life_is_a_line(path: Path) -> None:
    file = await TowerFile.open(path)
    await file.beat()
    assert await TowerFileReader(path).read_new() == [b"{}"]
    assert (await TowerFile.open(path)).newest == {}
