"""The other parts of the wallet that add to its process: routes of the owner's door, and tasks."""

import contextlib
import re
from pathlib import Path
from typing import Final

from channel.errors import ConfigError
from mpp_session.dashboard.access import Access
from mpp_session.dashboard.token_file import read_or_make_token
from mpp_session.settings import Secret
from mpp_session.settings.admin import TOKEN_CHARS_MIN
from mpp_session.wallet.approvals.inbox import OWNER, ApprovalInbox
from mpp_session.wallet.approvals.webhook import Webhook
from mpp_session.wallet.server.opening import WalletSettings
from mpp_session.wallet.server.parts import Addition
from mpp_session.wallet.server.running import RunningWallet
from mpp_session.wallet.server.sockets import listen_on_port, require_private

__all__ = ["APPROVERS", "build_additions", "open_approvals"]

APPROVERS: Final = "approvers"
"""The directory of the log-in tokens of people who may answer, beside the owner."""
_PERSON: Final = re.compile("[a-z0-9][a-z0-9._-]{0,63}")


def build_additions(approvals: ApprovalInbox) -> list[Addition]:
    """Return what other parts add to a wallet, in the order in which routes are tried."""
    return [approvals]


def open_approvals(
    wallet: RunningWallet, settings: WalletSettings, owner: Secret, opened: contextlib.ExitStack
) -> ApprovalInbox:
    """Return the approvals of a wallet, with their pages' socket open if they have any.

    Raises:
        ConfigError: The webhook or a file of a person's token cannot be used.
        CommandError: The port is in use.
    """
    page = None
    if settings.approvals is not None:
        page = opened.enter_context(listen_on_port(*settings.approvals))
    return ApprovalInbox(
        wallet.approvals,
        wallet.books.store.transact,
        webhook=_webhook(wallet, settings),
        page=page,
        people={OWNER.id: Access(owner), **_people(settings.home / APPROVERS)},
    )


def _webhook(wallet: RunningWallet, settings: WalletSettings) -> Webhook | None:
    policy = wallet.policy
    table = policy.approval.webhook
    if table is None:
        return None
    path = settings.policy.parent / table.secret_file
    require_private(path, "secret of `approval.webhook`")
    secret = path.read_text("utf-8", "replace").strip()
    if len(secret) < TOKEN_CHARS_MIN:
        raise ConfigError(
            f"expected a secret of {TOKEN_CHARS_MIN} characters or more in {path}, found "
            f"{len(secret)}"
        )
    return Webhook(table.url, Secret(secret), allow_loopback=policy.allow_loopback_http)


def _people(folder: Path) -> dict[str, Access]:
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _PERSON.fullmatch(path.name) or path.name == OWNER.id:
            raise ConfigError(
                f"expected files named after people in {folder}, in lower-case letters, digits and "
                f". _ -, and not {OWNER.id}; found {path.name!r}"
            )
        require_private(path, "log-in token")
        found[path.name] = Access(read_or_make_token(path))
    return found
