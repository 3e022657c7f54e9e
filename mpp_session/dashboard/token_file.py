"""The log-in token's file: made once, readable by its owner alone."""

import os
import secrets
from pathlib import Path
from typing import Final

from channel.errors import ConfigError
from channel.files import write_new
from mpp_session.settings import Secret
from mpp_session.settings.admin import TOKEN_CHARS_MIN

__all__ = ["TOKEN_BYTES", "read_or_make_token"]

TOKEN_BYTES: Final = 32
_READ_BY_OTHERS: Final = 0o077
_NAME_BYTES: Final = 8


def read_or_make_token(path: Path) -> Secret:
    """Return the token in a file; make the file, mode 0600, if there is none.

    Raises:
        ConfigError: The file cannot be read or made, others may read it, or it holds no token.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return _read(path)
        token = secrets.token_urlsafe(TOKEN_BYTES)
        made = path.with_name(f".{path.name}-{secrets.token_hex(_NAME_BYTES)}")
        write_new(made, f"{token}\n".encode())
        try:
            # of several processes that start together one places its file, whole
            os.link(made, path)
        except FileExistsError:
            return _read(path)
        finally:
            made.unlink()
    except OSError as error:
        raise ConfigError(
            f"the dashboard's token file {path} cannot be used: {error.strerror}; set "
            "`ledger.state_dir` to a directory that this user may write, or "
            "`admin.enabled = false`"
        ) from None
    return Secret(token)


def _read(path: Path) -> Secret:
    if path.stat().st_mode & _READ_BY_OTHERS:
        raise ConfigError(
            f"the dashboard's token file {path} may be read by other users: run `chmod 600 {path}`"
        )
    token = path.read_text("utf-8", "replace").strip()
    if len(token) < TOKEN_CHARS_MIN or not token.isascii():
        raise ConfigError(
            f"expected a token of {TOKEN_CHARS_MIN} characters or more in {path}, found "
            f"{len(token)}: delete the file, and the next start makes another"
        )
    return Secret(token)
