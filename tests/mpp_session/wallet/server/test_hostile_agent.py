"""An agent that wants more than its own, as another user of the machine and as a client."""

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import msgspec
import pytest

from channel.errors import PolicyRefusedError, WireError
from channel.limits import (
    WALLET_BODY_BYTES_MAX,
    WALLET_PURPOSE_BYTES_MAX,
    WALLET_QUESTION_BYTES_MAX,
    WALLET_TEXT_CHARS_MAX,
    WALLET_TIMEOUT_S_MAX,
)
from mpp_session.agent.purpose import Purpose
from mpp_session.agent.wallet_wire import format_purpose, parse_purpose, parse_timeout
from mpp_session.wallet.server.outgoing import parse_target, passed_fields
from mpp_session.wallet.server.process import OWNER_SOCKET, OWNER_TOKEN
from tests.mpp_session.wallet.server.process import OTHER_UID, Pace, WalletProcess

HOSTILE = """
import json, os, socket, sys
uid, reads, connects = int(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
os.setgroups([]); os.setgid(uid); os.setuid(uid)
found = {}
for path in reads:
    try:
        with open(path, "rb") as file:
            file.read(1)
        found[path] = "read"
    except OSError as error:
        found[path] = type(error).__name__
for path in connects:
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(path)
            line.settimeout(5)
            line.sendall(b"GET /budgets HTTP/1.1\\r\\nHost: w\\r\\n\\r\\n")
            found[path] = line.recv(12).decode() or "closed"
        except OSError as error:
            found[path] = type(error).__name__
print(json.dumps(found))
"""


def become(uid: int, reads: list[Path], connects: list[str]) -> dict[str, str]:
    """Try to read and to connect as a user, in a process of its own."""
    words = [str(uid), json.dumps([str(one) for one in reads]), json.dumps(connects)]
    shown = subprocess.run(  # noqa: S603 -- this file's own program
        [sys.executable, "-c", HOSTILE, *words], capture_output=True, check=True, timeout=30
    )
    found: dict[str, str] = json.loads(shown.stdout)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_reaches_its_own_socket_and_nothing_else(wallet: WalletProcess) -> None:
    home, pid = wallet.home, wallet.pid
    reads = [
        wallet.keystore,
        wallet.policy,
        wallet.folder / "password",
        home / "wallet.db",
        home / OWNER_TOKEN,
        *(Path(f"/proc/{pid}/{name}") for name in ("environ", "mem", "maps", "fd/0")),
    ]
    own, shared = (wallet.address(name).removeprefix("unix:") for name in ("far", "scout"))
    connects = [own, shared, str(home / OWNER_SOCKET)]
    found = become(OTHER_UID, reads, connects)
    assert {found[str(path)] for path in reads} <= {"PermissionError", "FileNotFoundError"}
    assert found[connects[0]] == "HTTP/1.1 401"
    assert found[connects[1]] == found[connects[2]] == "PermissionError"
    # A third user cannot connect to that socket either, and the kernel says who does.
    assert become(OTHER_UID + 1, [], [own])[own] == "PermissionError"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_user_is_checked_even_where_modes_are_open(wallet: WalletProcess) -> None:
    """The file's owner says nothing of who connects (harness-anything PR#526)."""
    own = wallet.address("far").removeprefix("unix:")
    os.chmod(own, 0o666)  # noqa: PTH101, S103 -- a socket that its user opened to all
    try:
        found = become(OTHER_UID + 1, [], [own])[own]
    finally:
        os.chmod(own, 0o600)  # noqa: PTH101
    assert found in {"closed", "ConnectionResetError", "BrokenPipeError"}
    assert f"user {OTHER_UID + 1} connected" in wallet.log()


def ask(
    wallet: WalletProcess,
    path: str = "/",
    *,
    name: str = "scout",
    token: str | None = None,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    content: bytes = b"",
) -> httpx.Response:
    place = wallet.address(name).removeprefix("unix:")
    with httpx.Client(transport=httpx.HTTPTransport(uds=place), timeout=30) as client:
        return client.request(
            method,
            f"http://wallet{path}",
            content=content,
            headers={"Wallet-Token": token or wallet.tokens["scout"], **(headers or {})},
        )


def test_a_wallet_is_no_way_to_servers_that_no_rule_names(
    wallet: WalletProcess, shop_url: str, pace: Pace
) -> None:
    """Also what is free is not asked for: the refusal comes before the request is sent."""
    seen = len(pace.bodies)
    found = ask(wallet, headers={"Wallet-Target": f"{shop_url}/inside/echo"})
    assert (found.status_code, found.json()["failure"]["fields"]["code"]) == (403, "rule_denied")
    assert len(pace.bodies) == seen


def test_a_token_opens_its_own_door_only(wallet: WalletProcess) -> None:
    assert ask(wallet, "/budgets", method="GET").status_code == 200
    assert ask(wallet, "/budgets", method="GET", token="mpp_wrong").status_code == 401  # noqa: S106
    if os.geteuid() == 0:
        far = wallet.tokens["far"]
        assert ask(wallet, "/budgets", method="GET", name="far", token=far).status_code == 200
        assert ask(wallet, "/budgets", method="GET", name="far").status_code == 401
        assert ask(wallet, "/budgets", method="GET", token=far).status_code == 401
        port = wallet.announced["port"]
        assert httpx.get(f"{port}/budgets", headers={"Wallet-Token": far}).status_code == 401
    headers = {"Wallet-Token": wallet.tokens["scout"]}
    assert httpx.get(f"{wallet.announced['port']}/budgets", headers=headers).is_success


def test_the_owners_orders_are_not_the_agents(wallet: WalletProcess) -> None:
    owner_token = (wallet.home / OWNER_TOKEN).read_text().strip()
    for path in ("/freeze", "/status", "/close", "/reload", "/%2e%2e/freeze"):
        for token in (wallet.tokens["scout"], owner_token):
            status = ask(wallet, path, token=token, content=b'{"scope":"all"}').status_code
            assert status == (401 if token == owner_token else 404)
    owner = httpx.Client(transport=httpx.HTTPTransport(uds=str(wallet.home / OWNER_SOCKET)))
    with owner:
        for token in ("", wallet.tokens["scout"], owner_token + "x"):
            answer = owner.get("http://wallet/status", headers={"Wallet-Token": token})
            assert answer.status_code == 401


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "unix:/run/wallet.sock",
        "ftp://a.example/",
        "http://a.example/",
        "https://user:pass@a.example/",
        "https://a.example/#part",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://127.1/",
        "//a.example/",
        "/payments/channels",
        "https:///x",
        "https://a.example/ x",
        "http://[::ffff:127.0.0.1]@a.example/",
    ],
)
def test_a_target_is_an_https_url_of_another_machine(target: str) -> None:
    with pytest.raises((WireError, PolicyRefusedError)):
        parse_target(target, allow_loopback=True)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "a.localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",  # noqa: S104 -- a target, nothing listens
        "169.254.169.254",
        "localhost.",
    ],
)
def test_this_machine_is_a_target_only_if_the_policy_says_so(host: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(PolicyRefusedError, match="allow_loopback_http"):
            parse_target(f"{scheme}://{host}:7/", allow_loopback=False)
    assert parse_target(f"https://{host}:7/", allow_loopback=True, own_ports=[8]).port == 7
    with pytest.raises(PolicyRefusedError, match="own"):
        parse_target(f"https://{host}:7/", allow_loopback=True, own_ports=[7])


def test_only_end_to_end_fields_pass() -> None:
    raw = [
        (b"Connection", b"close, X-Secret"),
        (b"X-Secret", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Host", b"a"),
        (b"WALLET-Token", b"t"),
        (b"Proxy-Authorization", b"p"),
        (b"Cookie", b"a=b"),
        (b"Payment-Receipt", b"r"),
    ]
    assert passed_fields(raw) == [("cookie", "a=b"), ("payment-receipt", "r")]


def test_a_purpose_is_bounded_and_has_no_control_characters() -> None:
    """Values at each bound pass, values beyond it do not."""
    longest = Purpose(task="t" * WALLET_TEXT_CHARS_MAX)
    assert parse_purpose(format_purpose(longest)) == longest
    for bad in (
        Purpose(task="t" * (WALLET_TEXT_CHARS_MAX + 1)),
        Purpose(reason="a\r\nWallet-Token: b"),
        Purpose(tool="\x00"),
        Purpose(on_behalf_of="\u2028"),
    ):
        with pytest.raises(WireError):
            parse_purpose(format_purpose(bad))
    wide = Purpose(task="\u5831\u544a\u3000\u66f8", reason="\u00a0")
    assert parse_purpose(format_purpose(wide)) == wide
    for text in ("!", "e30=x", base64.b64encode(b'{"more":1}').decode(), "W10"):
        with pytest.raises(WireError):
            parse_purpose(text)
    with pytest.raises(WireError, match=str(WALLET_PURPOSE_BYTES_MAX)):
        parse_purpose("A" * (WALLET_PURPOSE_BYTES_MAX + 1))


def test_patience_is_bounded() -> None:
    assert parse_timeout("") == WALLET_TIMEOUT_S_MAX
    assert parse_timeout(str(WALLET_TIMEOUT_S_MAX + 1)) == WALLET_TIMEOUT_S_MAX
    assert parse_timeout("2.5") == 2.5
    for text in ("0", "-1", "nan", "inf", "soon"):
        with pytest.raises(WireError):
            parse_timeout(text)


def raw(wallet: WalletProcess, head: bytes, body: bytes = b"") -> bytes:
    """Send bytes and return the answer up to the end of the connection or of a second."""
    line = socket.socket(socket.AF_UNIX)
    with line:
        line.connect(wallet.address("scout").removeprefix("unix:"))
        line.settimeout(5)
        token = wallet.tokens["scout"].encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            line.sendall(head.replace(b"TOKEN", token) + b"\r\n" + body)
        answer = b""
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            while piece := line.recv(65_536):
                answer += piece
                if b"\r\n\r\n" in answer:
                    break
        return answer


HEAD = b"POST / HTTP/1.1\r\nHost: w\r\nWallet-Token: TOKEN\r\n"
TARGET = b"Wallet-Target: http://127.0.0.1:9/\r\n"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (TARGET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"400"),
        (TARGET + b"Content-Length: 5\r\nContent-Length: 6\r\n", b"400"),
        (TARGET + TARGET + b"Content-Length: 0\r\n", b"400"),
        (TARGET + b"Wallet-Token: other\r\nContent-Length: 0\r\n", b"400"),
        (TARGET + b"Wallet-Purpose: bm8K\r\nContent-Length: 0\r\n", b"400"),
        (TARGET + b"Wallet-Hop: bm8K\r\nContent-Length: 0\r\n", b"400"),
        (TARGET + b"X-Long: " + b"a" * 100_000 + b"\r\n", b"4"),
        (TARGET + b"".join(b"X-%d: 1\r\n" % one for one in range(300)), b"4"),
        (TARGET + b"Content-Length: 0\r\n", b"502"),
    ],
)
def test_a_request_that_two_readers_read_differently_is_refused(
    wallet: WalletProcess, fields: bytes, status: bytes
) -> None:
    answer = raw(wallet, HEAD + fields, b"0\r\n\r\nPOST /payments/close HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]


def test_bodies_are_bounded(wallet: WalletProcess) -> None:
    target = {"Wallet-Target": "http://127.0.0.1:9/"}
    long = ask(wallet, headers=target, content=bytes(WALLET_BODY_BYTES_MAX + 1))
    assert long.status_code == 413
    assert ask(wallet, headers=target, content=bytes(WALLET_BODY_BYTES_MAX)).status_code == 502
    question = msgspec.json.encode({"url": "https://a.example/" + "a" * WALLET_QUESTION_BYTES_MAX})
    assert ask(wallet, "/payments/close", content=question).status_code == 413


def test_a_silent_neighbour_does_not_hold_the_door(wallet: WalletProcess) -> None:
    """Connections that say nothing, of the same user, do not keep others out."""
    place = wallet.address("scout").removeprefix("unix:")
    lines = [socket.socket(socket.AF_UNIX) for _ in range(300)]
    try:
        for line in lines:
            line.connect(place)
        assert ask(wallet, "/budgets", method="GET").status_code == 200
    finally:
        for line in lines:
            line.close()
    assert threading.active_count() < 50
