"""llama.cpp's own server with a small model, in a process of its own, for a module of tests."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

__all__ = ["real_model"]


@contextlib.contextmanager
def real_model() -> Iterator[str]:
    """Yield its URL."""
    with subprocess.Popen(
        [sys.executable, "-m", "mpp_session.demo.model"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), line
            yield line.split()[-1]
        finally:
            process.kill()
