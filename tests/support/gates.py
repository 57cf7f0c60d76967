"""Coroutines whose every API call waits until a test says what becomes of it: interleavings as data.

`Gates` stands where code asks `asyncio` for threads: a call that was to run in one becomes a `Call` of the operation
that makes it, and runs on `release`. One event loop, no thread, no time: the same decisions give the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import types
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Literal
from unittest import mock

from scheduler import kubeapi

Fate = Literal["through", "lost", "unheard", "refused"]
"""Of one call: it works; the request is lost; the answer is lost; the server refuses to work."""

HOPS = 24
"""Turns of the loop after which whatever a released call set going has reached its next calls, or waits for others."""

_current: contextvars.ContextVar[Operation] = contextvars.ContextVar("operation")


class Call:
    """One call under way."""

    def __init__(self, operation: Operation, run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.operation, self.arguments = operation, arguments
        self.run: Callable[[], Any] = functools.partial(run, *arguments)
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def name(self) -> str:
        """What is called, for people: `patch /api/v1/namespaces/default/pods/p0`."""
        run = self.run.func  # type: ignore[attr-defined]
        return " ".join([run.__name__, *(str(each) for each in self.arguments[:1])])


class Operation:
    """A coroutine, and the calls that it waits for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, what: str, work: Coroutine[Any, Any, Any]) -> None:
        self.what = what
        self.calls: list[Call] = []
        context = contextvars.copy_context()
        context.run(_current.set, self)
        self.task = loop.create_task(work, context=context)

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return self.task.done()

    def __repr__(self) -> str:
        return f"<{self.what}: {', '.join(call.name for call in self.calls) or 'ended'}>"


class Gates:
    """An event loop that runs operations from call to call."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def start(self, what: str, work: Coroutine[Any, Any, Any]) -> Operation:
        """Run a coroutine up to its first calls."""
        operation = Operation(self._loop, what, work)
        self.settle()
        return operation

    def release(self, call: Call, fate: Fate = "through") -> None:
        """Let one call happen, and its operation run up to the next ones."""
        call.operation.calls.remove(call)
        self._answer(call, fate)
        self.settle()
        if call.operation.done:
            self.stop(call.operation)

    def stop(self, *operations: Operation) -> None:
        """End operations where they are, as when their process is killed; their calls never happen."""
        for operation in operations:
            for call in operation.calls:
                call.answer.cancel()
            operation.task.cancel()
        self.settle()

    def finish(self, operation: Operation) -> None:
        """Let an operation run to its end, undisturbed."""
        while not operation.done:
            self.release(operation.calls[0])

    def close(self) -> None:
        """Give the loop back."""
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self.settle()
        self._loop.close()

    @staticmethod
    def _answer(call: Call, fate: Fate) -> None:
        if fate == "lost":
            call.answer.set_exception(ConnectionRefusedError("the request was lost"))
            return
        if fate == "refused":
            call.answer.set_exception(kubeapi.ApiError(503, "the server is overloaded"))
            return
        found = attempt(call)
        if fate == "unheard":
            call.answer.set_exception(ConnectionResetError("the answer was lost"))
        elif isinstance(found, kubeapi.ApiError):
            call.answer.set_exception(found)
        else:
            call.answer.set_result(found)

    def settle(self) -> None:
        """Let whatever waits for no call go on, to its next call or its end."""

        async def turns() -> None:
            for _ in range(HOPS):
                await asyncio.sleep(0)

        self._loop.run_until_complete(turns())


def attempt(call: Call) -> Any:
    """Do what a call asks, whoever hears of it: what the API says, or the error that it answers with."""
    try:
        return call.run()
    except kubeapi.ApiError as error:
        return error


async def park(run: Callable[..., Any], *arguments: Any) -> Any:
    """What stands for asyncio.to_thread."""
    operation = _current.get()
    call = Call(operation, run, arguments)
    operation.calls.append(call)
    try:
        return await call.answer
    finally:
        if call in operation.calls:  # given up: a sibling of its gather failed
            operation.calls.remove(call)


async def _at_once(_: float) -> None:
    await asyncio.sleep(0)


@contextlib.contextmanager
def installed(module: types.ModuleType) -> Iterator[None]:
    """Have a module's threads and pauses made of calls that wait, for as long as the context lasts."""
    stand_in = types.SimpleNamespace(**{**vars(asyncio), "to_thread": park, "sleep": _at_once})
    with mock.patch.object(module, "asyncio", stand_in):
        yield
