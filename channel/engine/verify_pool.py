"""Verifies many signatures on several cores: libsecp256k1 runs without Python's lock.

A single voucher is verified where it arrives, without overhead. After a turn of the event loop with
many vouchers, those of the next turn go into a queue. The loop and its helper threads take from the
queue until it is empty, so a slow helper takes fewer.
"""

import asyncio
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeAlias

from channel.types import Address, ChannelKey, SignedVoucher, VerifiedVoucher
from channel.verify.voucher import verify_voucher

__all__ = ["VerifyPool"]

_Waiting: TypeAlias = tuple[SignedVoucher, ChannelKey, Address, "asyncio.Future[VerifiedVoucher]"]
_Answer: TypeAlias = tuple["asyncio.Future[VerifiedVoucher]", VerifiedVoucher | Exception]

_SHARED_MIN: Final = 8
"""Vouchers in a turn from which sharing pays: waking a helper costs as much as one or two."""
_LAST_ONE_S: Final = 0.002
"""When the queue is empty, a helper holds one voucher at most, 30 us of work. The loop waits for
it, so that one turn's vouchers share a commit, but not for a thread that gets no processor."""


class VerifyPool:
    """`verify_voucher` for one event loop and one EIP-712 domain.

    `threads` includes the loop's own.
    """

    def __init__(self, threads: int, domain: str) -> None:
        self._domain = domain
        self._helpers = threads - 1
        self._pool = ThreadPoolExecutor(max(1, self._helpers), thread_name_prefix="verify")
        self._waiting: deque[_Waiting] = deque()
        self._in_turn = 0
        self._is_crowded = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def verify(
        self, voucher: SignedVoucher, key: ChannelKey, signer: Address
    ) -> VerifiedVoucher:
        """Return the verified voucher; raises what `verify_voucher` raises."""
        if self._helpers:
            self._in_turn += 1
            if self._in_turn == 1 or self._loop is None:
                self._loop = asyncio.get_running_loop()  # once a turn: it costs a system call
                self._loop.call_soon(self._end_turn)
            if self._is_crowded:
                answer: asyncio.Future[VerifiedVoucher] = self._loop.create_future()
                self._waiting.append((voucher, key, signer, answer))
                return await answer
        return verify_voucher(voucher, key, signer, self._domain)

    def close(self) -> None:
        """End the helpers; the loop verifies what still waits."""
        self._helpers = 0
        self._pool.shutdown(wait=False)

    def _end_turn(self) -> None:
        self._is_crowded = self._in_turn >= _SHARED_MIN
        self._in_turn = 0
        if not self._waiting:
            return
        queue, self._waiting = self._waiting, deque()
        shares = [
            self._pool.submit(_take_all, queue, self._domain)
            for _ in range(min(self._helpers, len(queue) // _SHARED_MIN))
        ]
        _give(_take_all(queue, self._domain))
        for share in shares:
            self._collect(share)

    def _collect(self, share: "Future[list[_Answer]]") -> None:
        loop = asyncio.get_running_loop()
        try:
            _give(share.result(timeout=_LAST_ONE_S))
        except TimeoutError:
            share.add_done_callback(lambda late: loop.call_soon_threadsafe(_give, late.result()))


def _take_all(queue: deque[_Waiting], domain: str) -> list[_Answer]:
    """Verify from the queue until it is empty; other threads do the same concurrently."""
    done: list[_Answer] = []
    while True:
        try:
            voucher, key, signer, answer = queue.popleft()
        except IndexError:
            return done
        try:
            done.append((answer, verify_voucher(voucher, key, signer, domain)))
        except Exception as error:  # noqa: BLE001 - every error belongs to this caller
            done.append((answer, error.with_traceback(None)))


def _give(answers: list[_Answer]) -> None:
    for answer, result in answers:
        if answer.done():  # its caller was cancelled
            continue
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)
