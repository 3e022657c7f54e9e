"""O-84: no file that another user left where we look blocks a process, or leads it elsewhere."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from eth_account import Account

from channel.errors import ConfigError
from channel.files import open_regular
from channel.limits import KEYSTORE_BYTES_MAX, PASSWORD_BYTES_MAX
from mpp_session.agent.keystore import decrypt_keystore, read_password
from settlement.files import FileThread, read_regular
from settlement.presigned.file import BEAT, TowerFile, TowerFileReader
from tests.waiting import PATIENCE_S, until

STRANGE = ["a pipe", "a link to a device", "a device", "a link to a file", "a loop", "a folder"]


def put(what: str, path: Path) -> None:
    """Put something there that is not the file it should be."""
    match what:
        case "a pipe":
            os.mkfifo(path)
        case "a link to a device" | "a device":
            path.symlink_to("/dev/zero")
        case "a link to a file":
            (path.parent / "elsewhere").write_bytes(BEAT)
            path.symlink_to(path.parent / "elsewhere")
        case "a loop":
            path.symlink_to(path)
        case _:
            path.mkdir()


@pytest.mark.parametrize("what", STRANGE)
async def test_the_file_between_provider_and_tower_is_a_file(what: str, tmp_path: Path) -> None:
    """O-84: on either end; what it should be is taken again as soon as it is there."""
    path = Path("/dev/zero") if what == "a device" else tmp_path / "settles.jsonl"
    if what != "a device":
        put(what, path)
    reader = TowerFileReader(path)
    for _ in range(2):
        with pytest.raises(OSError, match=r"regular|symbolic|directory|denied"):
            await reader.read_new()
    with pytest.raises(OSError, match=r"regular|symbolic|directory|denied"):
        await TowerFile.open(path)
    if what != "a device":
        path.rmdir() if what == "a folder" else path.unlink()
        path.write_bytes(BEAT)
        assert await reader.read_new() == [BEAT.rstrip()]


@pytest.mark.parametrize("what", ["a pipe", "a link to a file", "a file of others"])
async def test_the_new_file_beside_it_is_made_for_its_owner_alone(
    what: str, tmp_path: Path
) -> None:
    """O-84: any file of that name is removed, and nothing is written through it."""
    path, beside = tmp_path / "settles.jsonl", tmp_path / "settles.jsonl.new"
    file = await TowerFile.open(path)
    if what == "a file of others":
        beside.write_bytes(b"theirs")
        beside.chmod(0o666)
    else:
        put(what, beside)
    path.unlink()  # it writes a new one
    await file.beat()
    assert path.read_bytes() == BEAT
    assert path.stat().st_mode & 0o777 == 0o600
    if what == "a link to a file":
        assert (tmp_path / "elsewhere").read_bytes() == BEAT, "as it was"


@pytest.mark.parametrize("what", ["a pipe", "a link to a device", "too long"])
def test_keys_and_passwords_are_small_files(what: str, tmp_path: Path) -> None:
    """O-84: a link to one will do, as where secrets are mounted; nothing else does."""
    path = tmp_path / "secret"
    if what == "too long":
        path.write_bytes(b"x" * (1024 * 1024 + 1))
    else:
        put(what, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_password(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        decrypt_keystore(path, "password")
    (tmp_path / "mounted").write_text("open sesame\n")
    (tmp_path / "link").symlink_to(tmp_path / "mounted")
    assert read_password(tmp_path / "link") == "open sesame"


def test_a_password_and_a_keystore_may_be_as_long_as_their_bounds(tmp_path: Path) -> None:
    """O-84: and not a byte longer."""
    path = tmp_path / "secret"
    path.write_bytes(b"x" * PASSWORD_BYTES_MAX)
    assert len(read_password(path)) == PASSWORD_BYTES_MAX
    path.write_bytes(b"x" * (PASSWORD_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="longer than"):
        read_password(path)
    key = bytes(31) + b"\1"
    keystore = json.dumps(Account.encrypt(key, "open", kdf="pbkdf2", iterations=10))
    path.write_text(keystore.ljust(KEYSTORE_BYTES_MAX))
    assert decrypt_keystore(path, "open") == key
    path.write_text(keystore.ljust(KEYSTORE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="longer than"):
        decrypt_keystore(path, "open")


def test_a_small_file_may_be_as_long_as_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="longer than 4 bytes"):
        read_regular(path, 4)


async def test_a_file_system_that_hangs_costs_a_bounded_time(tmp_path: Path) -> None:
    """O-84: one thread hangs with it, and no more; once it answers, work goes on."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    thread = FileThread(within_s=0.1)
    for _ in range(3):
        with pytest.raises(TimeoutError, match="does not answer"):
            await thread.run(lambda: os.open(path, os.O_RDONLY))
    await asyncio.to_thread(lambda: os.close(os.open(path, os.O_WRONLY)))
    assert await FileThread().run(lambda: 7) == 7

    async def works() -> bool:
        try:
            return await thread.run(lambda: 8) == 8
        except TimeoutError:
            return False

    await until(works)


async def test_what_came_while_reading_hung_is_read_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-84: a stand-in for a mount that hangs; what it gave too late is not lost."""
    path = tmp_path / "settles.jsonl"
    path.write_bytes(BEAT)
    reader = TowerFileReader(path, within_s=0.05)

    answers = threading.Event()

    def hang(*arguments: int) -> int:
        answers.wait(PATIENCE_S)
        return open_regular(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr("settlement.presigned.file.open_regular", hang)
        with pytest.raises(TimeoutError):
            await reader.read_new()
    answers.set()
    reads: list[list[bytes]] = []

    async def is_read() -> bool:
        try:
            reads.append(await reader.read_new())
        except TimeoutError:
            return False
        return True

    await until(is_read)
    await until(is_read)
    assert reads == [[BEAT.rstrip()], []]


def test_a_process_ends_though_its_file_hangs(tmp_path: Path) -> None:
    """O-84: the thread that hangs is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    script = (
        "import asyncio, os, sys\n"
        "from settlement.files import FileThread\n"
        "async def main():\n"
        "    try: await FileThread(within_s=0.1).run(lambda: os.open(sys.argv[1], os.O_RDONLY))\n"
        "    except TimeoutError: print('late')\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "pipe")]
    ended = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=True)  # noqa: S603
    assert ended.stdout == b"late\n"
