"""One vendor's child process: asked with a deadline, killed when it hangs, started anew when it is gone."""

import contextlib
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from capability_db.agent import devices, reading

PATIENCE: Final = (0.0, 0.0, 30.0, 60.0)
"""Seconds before the child is started again after that many failures in a row; a fresh Python costs 0.1 s of CPU."""
ABSENT_SECONDS: Final = 60.0
"""Between two looks for a library that is not there: drivers are installed late."""
START_SECONDS: Final = 20.0
"""More for the first answer of a child: NVML wakes every GPU that nobody keeps awake, which takes seconds each."""
KILLED_SECONDS: Final = 2.0


def command(vendor: devices.Vendor) -> list[str]:
    """How the child is started."""
    return [sys.executable, "-m", "capability_db.agent.child", vendor]


class Probe:
    """Asks one vendor's library from outside its process; not for use by several threads at once."""

    def __init__(
        self,
        vendor: devices.Vendor,
        deadline_seconds: float,
        *,
        start_seconds: float = START_SECONDS,
        start: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.vendor: devices.Vendor = vendor
        self._deadline, self._start_seconds = deadline_seconds, start_seconds
        self._start = list(start or command(vendor))
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._has_answered = False
        """Whether the child that runs now has."""
        self._allowed = deadline_seconds
        self._failures = 0
        self._again_at = -1.0
        self._last: reading.Answer | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id; None: none runs."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def read(self) -> reading.Answer:
        """What the library says now, or the last failure while nobody is asked again yet; never raises, never hangs."""
        if self._clock() < self._again_at and self._last is not None:
            return self._last
        answer = self._answer()
        self._last = answer
        if answer.kind == "ok":
            self._has_answered, self._failures = True, 0
            return answer
        self.close()
        if answer.kind == "absent":
            self._again_at = self._clock() + ABSENT_SECONDS
        else:
            self._failures += 1
            self._again_at = self._clock() + PATIENCE[min(self._failures, len(PATIENCE)) - 1]
        return answer

    def close(self) -> None:
        """End the child."""
        child, self._child, self._has_answered = self._child, None, False
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A process that hangs inside the kernel does not die before the call returns; nobody waits for it.
            child.wait(KILLED_SECONDS)

    def _answer(self) -> reading.Answer:
        try:
            line = self._ask()
        except OSError as error:
            return reading.Answer("failed", text=f"the reading process cannot be reached: {error}")
        if line is None:
            return reading.Answer(
                "failed", text=f"the library did not answer within {self._allowed:g} s; its process was killed"
            )
        if not line.endswith(b"\n"):
            return reading.Answer("failed", text=f"the reading process ended: {self._ending()}")
        try:
            return msgspec.json.decode(line, type=reading.Answer)
        except msgspec.DecodeError as error:
            return reading.Answer("failed", text=f"the reading process spoke nonsense: {error}")

    def _ask(self) -> bytes | None:
        """The child's line, cut short where the child ended; None where it did not come in time."""
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = subprocess.Popen(  # noqa: S603 - our own module
                self._start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        child = self._child
        assert child.stdin is not None  # noqa: S101
        assert child.stdout is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(b"\n")
            child.stdin.flush()
        self._allowed = self._deadline + (0 if self._has_answered else self._start_seconds)
        until, parts = self._clock() + self._allowed, []
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, until - self._clock())):
                    return None
                part = child.stdout.read1(1 << 16)  # type: ignore[attr-defined]
                parts.append(part)
                if not part or part.endswith(b"\n"):
                    return b"".join(parts)

    def _ending(self) -> str:
        assert self._child is not None  # noqa: S101
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._child.wait(KILLED_SECONDS)
            return f"signal {-status}" if status < 0 else f"exit status {status}"
        return "its output is closed"
