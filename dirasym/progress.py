"""A run's progress: a bar on a terminal, plain lines elsewhere; and that of work in parts."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tqdm


class Progress:
    """The steps of one run, its rate and the time left, on stderr."""

    def __init__(self, title: str, num_steps: int, *, shown: bool = True):
        self._title, self._num_steps = title, num_steps
        self._shown = shown and jax.process_index() == 0
        self._bar: tqdm.tqdm | None = None

    def start(self, step: int) -> None:
        """Shows where it begins."""
        self._first, self._start = step, time.monotonic()
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                desc=self._title, initial=step, total=self._num_steps, unit="step", leave=False
            )

    def update(self, step: int, history: Mapping[str, np.ndarray]) -> None:
        """Shows the step and the last loss."""
        loss = float(history["loss"][-1])
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._shown:
            rate = (step - self._first) / max(time.monotonic() - self._start, 1e-9)
            left = tqdm.tqdm.format_interval((self._num_steps - step) / rate)
            print(
                f"{self._title}: step {step}/{self._num_steps}, loss {loss:.4g}, "
                f"{rate:.3g} steps/s, {left} left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()


@dataclasses.dataclass
class Parts:
    """The parts of one reading: what each takes, and a bar of its questions."""

    shown: bool
    title: str
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def part(self, name: str, count: int, size: int = 1) -> Iterator[Callable]:
        """Gives a wrapper for what is called on `size` of the `count` questions at a time."""
        start = time.monotonic()
        how: dict[str, Any] = dict(disable=not self.shown, leave=False)
        with tqdm.tqdm(desc=f"{name}{self.title}", total=count, **how) as bar:

            def counted(function):
                def call(*args):
                    found = jax.block_until_ready(function(*args))
                    bar.update(min(size, count - bar.n))
                    return found

                return call

            yield counted
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
