"""The owner's side of a wallet's door, for commands."""

import os
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from mpp_session.agent.wallet_socket import read_failure
from mpp_session.agent.wallet_wire import FAILURE, TOKEN
from mpp_session.errors import CommandError
from mpp_session.wallet.server.process import OWNER_SOCKET, OWNER_TOKEN

__all__ = ["ask_owner_door"]

_TIMEOUT_S: Final = 300.0
"""A close waits for servers and chains."""


def ask_owner_door(home: Path, method: str, path: str, body: object = None) -> Any:
    """Ask the wallet whose directory this is, and return its answer's JSON.

    Raises:
        CommandError: No wallet runs there, or this user is another one than the wallet's.
        MppSessionError: The wallet refuses the order; see what it says.
    """
    try:
        token = (home / OWNER_TOKEN).read_text("ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandError(
            f"the owner's token {home / OWNER_TOKEN} cannot be read: {reason}; name the wallet's "
            "directory with --home, and run this as the wallet's user"
        ) from None
    place = home / OWNER_SOCKET
    if not place.exists():
        raise _absent(place, "there is no such socket")
    transport = httpx.HTTPTransport(uds=str(place))
    with httpx.Client(transport=transport, timeout=_TIMEOUT_S) as client:
        request = client.build_request(
            method,
            f"http://wallet{path}",
            content=b"" if body is None else msgspec.json.encode(body),
            headers={TOKEN: token},
        )
        try:
            answer = client.send(request)
        except httpx.TransportError as error:
            owner = place.stat().st_uid if place.exists() else os.geteuid()
            if owner != os.geteuid():
                raise CommandError(
                    f"the wallet at {place} takes orders from user {owner} alone, and this is user "
                    f"{os.geteuid()}: run this as the wallet's user"
                ) from error
            raise _absent(place, str(error)) from error
    if FAILURE in answer.headers:
        raise read_failure(answer.content, request)
    return msgspec.json.decode(answer.content)


def _absent(place: Path, why: str) -> CommandError:
    return CommandError(
        f"no wallet answers at {place} ({why}): start it with `mpp-session wallet run`"
    )
