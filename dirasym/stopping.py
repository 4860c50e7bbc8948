"""Ends a sweep cleanly: at a signal, at Ctrl-C, or before a time limit."""

import contextlib
import contextvars
import math
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dirasym import usage

STATUS = 75  # of a process that stopped before it was done (EX_TEMPFAIL: try again)
GRACE = 15.0  # seconds that a segment may still take after a signal; clusters kill after 30
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A sweep stopped before it was done; what it has is saved, and the same call goes on."""


def check_limit(time_limit: float | None) -> None:
    """Raises ValueError for minutes below 0 or NaN, and TypeError for what is no number."""
    if time_limit is None:
        return
    usage.check_number("time_limit", time_limit)
    if not time_limit >= 0:  # NaN is not
        raise ValueError(f"time_limit must be a number of minutes, got {time_limit}")


class Stopping:
    """A context in which SIGTERM and Ctrl-C are heard, and the clock is watched.

    A signal lets the segment at hand (steps up to the next evaluation) end and be saved. One
    that takes longer than `GRACE`, or a second signal, ends it at once: the run then goes on
    from the checkpoint before. Several processes of one run stop at the same step.

    Inside of another (a run that needs a model which a sweep of its own trains) it also keeps
    the other's time, and tells it of signals.
    """

    def __init__(self, time_limit: float | None = None):
        check_limit(time_limit)
        self._deadline = None if time_limit is None else time.monotonic() + 60 * time_limit
        self._longest = 0.0
        self._reason = ""
        self._breakable = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        self._outer = _INNERMOST.get()
        self._token = _INNERMOST.set(self)
        if self._outer is not None and self._outer._deadline is not None:
            self._deadline = min(self._outer._deadline, self._deadline or math.inf)
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            self._before = {s: signal.signal(s, self._heard) for s in _SIGNALS}
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._out_of_patience)
        return self

    def __exit__(self, *_) -> None:
        _INNERMOST.reset(self._token)
        if self._outer is not None:
            self._outer._reason = self._outer._reason or self._reason
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _frame) -> None:
        again = bool(self._reason)
        self._reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        # Several processes must agree on a step, so none may leave the others in it.
        if jax.process_count() == 1:
            signal.setitimer(signal.ITIMER_REAL, 0.01 if again else GRACE)

    def _out_of_patience(self, _number: int, _frame) -> None:
        if self._breakable:
            self._breakable = False
            raise Stopped(
                f"stopped by {self._reason}; the same command resumes the last checkpoint"
            )

    @contextlib.contextmanager
    def segment(self) -> Iterator[None]:
        """Work that may be broken off, and whose time tells whether another one fits."""
        start = time.monotonic()
        self._breakable = True
        try:
            yield
        finally:
            self._breakable = False
        self._longest = max(self._longest, time.monotonic() - start)

    @contextlib.contextmanager
    def unbroken(self) -> Iterator[None]:
        """Work, such as writing, that signals do not break off."""
        breakable, self._breakable = self._breakable, False
        try:
            yield
        finally:
            self._breakable = breakable

    def fetch(self, tree: Any) -> Any:
        """Arrays on the host; while they are computed, signals are heard."""
        leaves: list[Any] = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
        if jax.process_count() == 1:
            while not all(x.is_ready() for x in leaves):
                time.sleep(0.002)
        return jax.device_get(tree)

    def reason(self) -> str:
        """Why it is time to stop, empty if it is not. Several processes ask together."""
        late = self._deadline is not None and time.monotonic() + self._longest > self._deadline
        reason = self._reason or ("the time limit" if late else "")
        if jax.process_count() > 1:
            asked = multihost_utils.process_allgather(np.array([bool(reason)]))
            reason = reason or ("another process" if asked.any() else "")
        return reason

    def check(self, where: str) -> None:
        """Raises Stopped, saying `where` all is saved, if it is time to stop."""
        if reason := self.reason():
            raise Stopped(f"stopped by {reason}: {where}; the same command resumes it")


_INNERMOST: contextvars.ContextVar[Stopping | None] = contextvars.ContextVar(
    "innermost", default=None
)


def check_innermost(where: str) -> None:
    """`Stopping.check` of the context that the caller is in; outside of any, nothing."""
    stopping = _INNERMOST.get()
    if stopping is not None:
        stopping.check(where)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM raises Stopped and Ctrl-C KeyboardInterrupt at once: for work that loses nothing."""

    def stop(number, _frame):
        raise Stopped(f"stopped by {signal.Signals(number).name}; the same command goes on")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
