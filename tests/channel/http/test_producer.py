"""An async iterable whose consumer hears of every wait before it begins."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from channel.http.producer import Producer
from channel.limits import PRODUCER_CLOSE_S_MAX
from tests.waiting import PATIENCE_S, until


class Consumer:
    """Notes what happens in which order; `error` is raised by its `before_waiting`."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.seen: list[str] = []
        self.error = error

    async def before_waiting(self) -> None:
        self.seen.append("wait")
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error

    async def take_all(self, producer: Producer[str]) -> list[str]:
        try:
            while True:
                self.seen.append(await producer.next())
        except StopAsyncIteration:
            return self.seen


async def test_a_wait_is_announced_and_what_is_there_is_not_waited_for() -> None:
    """Items that are ready are taken without a wait; before each wait the consumer may act."""

    async def items() -> AsyncIterator[str]:
        yield "a"
        yield "b"
        await asyncio.sleep(0)
        yield "c"
        await asyncio.get_running_loop().run_in_executor(None, str)
        await asyncio.sleep(0)
        yield "d"

    consumer = Consumer()
    seen = await consumer.take_all(Producer(items(), consumer.before_waiting))
    assert seen == ["a", "b", "wait", "c", "wait", "d"]


async def test_any_async_iterator_will_do() -> None:
    """One with a coroutine for `__anext__`, and one that returns a future."""

    class Coroutines:
        def __init__(self) -> None:
            self.left = ["a", "b"]

        def __aiter__(self) -> AsyncIterator[str]:
            return self

        async def __anext__(self) -> str:
            if not self.left:
                raise StopAsyncIteration
            await asyncio.sleep(0)
            return self.left.pop(0)

    class Futures(Coroutines):
        def __anext__(self) -> "asyncio.Future[str]":  # type: ignore[override]
            return asyncio.ensure_future(super().__anext__())

    for source in (Coroutines(), Futures()):
        consumer = Consumer()
        seen = await consumer.take_all(Producer(source, consumer.before_waiting))
        assert [item for item in seen if item != "wait"] == ["a", "b"]


async def test_a_failure_is_the_producers_own() -> None:
    """Raised immediately or after a wait, it comes out unchanged."""

    async def items(waits: int) -> AsyncIterator[str]:
        for _ in range(waits):
            await asyncio.sleep(0)
        raise LookupError("gone")
        yield "never"

    for waits in (0, 1):
        consumer = Consumer()
        with pytest.raises(LookupError, match="gone"):
            await Producer(items(waits), consumer.before_waiting).next()


async def test_a_consumer_that_fails_ends_the_producers_step() -> None:
    """F-56: the producer hears of it where it stands, and can be closed."""
    ended: list[BaseException] = []

    async def items() -> AsyncIterator[str]:
        try:
            await asyncio.Event().wait()
            yield "never"
        except BaseException as error:
            ended.append(error)
            raise

    consumer = Consumer(ConnectionError("left"))
    producer = Producer(items(), consumer.before_waiting)
    with pytest.raises(ConnectionError, match="left"):
        await producer.next()
    assert [str(error) for error in ended] == ["left"]
    await producer.close()


async def test_a_consumers_failure_is_not_lost_to_a_producer_that_goes_on() -> None:
    """What could not be written is not written over by the next item."""

    async def items() -> AsyncIterator[str]:
        try:
            await asyncio.Event().wait()
        except ConnectionError:
            yield "what else"

    consumer = Consumer(ConnectionError("left"))
    producer = Producer(items(), consumer.before_waiting)
    with pytest.raises(ConnectionError, match="left"):
        await producer.next()
    await producer.close()


async def test_a_cancellation_reaches_the_producer() -> None:
    """F-56: during the announcement of its wait as well as during the wait."""
    for turns in (1, 5):
        ended = asyncio.Event()

        async def items(ended: asyncio.Event = ended) -> AsyncIterator[str]:
            try:
                await asyncio.Event().wait()
                yield "never"
            finally:
                ended.set()

        consumer = Consumer()
        producer = Producer(items(), consumer.before_waiting)
        task = asyncio.create_task(producer.next())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()
        await producer.close()


async def test_a_cancellation_amid_a_write_reaches_what_the_producer_waits_for() -> None:
    """F-56: a reader that stopped reading and left; the work behind the producer ends, too."""
    begun: list[asyncio.Task[None]] = []
    never = asyncio.Event()

    async def items() -> AsyncIterator[str]:
        yield "a"
        begun.append(asyncio.create_task(asyncio.sleep(10 * PATIENCE_S)))
        await begun[0]

    async def blocked() -> None:
        await never.wait()

    producer = Producer(items(), blocked)
    assert await producer.next() == "a"
    taking = asyncio.create_task(producer.next())
    await until(lambda: bool(begun))
    taking.cancel()
    await asyncio.wait({taking})
    await producer.close()
    await asyncio.wait(begun, timeout=PATIENCE_S)
    assert taking.cancelled()
    assert begun[0].cancelled()


async def test_a_timeout_of_the_producers_own_is_its_own() -> None:
    """A producer may bound its own waiting; that is no cancellation of the stream."""

    async def items() -> AsyncIterator[str]:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            yield "late"

    consumer = Consumer()
    seen = await consumer.take_all(Producer(items(), consumer.before_waiting))
    assert seen == ["wait", "late"]


class Slow:
    """A producer that closes when the test says so."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.became = ""

    def __aiter__(self) -> "Slow":
        return self

    async def __anext__(self) -> str:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        try:
            await self.go_on.wait()
            self.became = "closed"
        except asyncio.CancelledError:
            self.became = "cancelled"
            raise


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_in_time", [True, False], ids=["in time", "a millisecond later"])
async def test_a_producer_has_so_long_to_close(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, is_in_time: bool
) -> None:
    """F-56, issue 10 B: then it is cancelled, and the log says so; the loop's clock is held."""
    loop = asyncio.get_running_loop()
    began = now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    slow = Slow()
    closing = asyncio.create_task(Producer(slow, lambda: None).close())
    await turns()
    now = began + PRODUCER_CLOSE_S_MAX - 0.001
    await turns()
    assert not closing.done()
    if is_in_time:
        slow.go_on.set()
    else:
        now = began + PRODUCER_CLOSE_S_MAX
    await turns()
    assert closing.done()
    assert slow.became == ("closed" if is_in_time else "cancelled")
    assert caplog.messages == ([] if is_in_time else ["a stream's producer does not close"])
