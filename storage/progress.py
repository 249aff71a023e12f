"""Show the progress of anything that takes seconds: a tqdm bar on a terminal, elsewhere a log line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType

from tqdm import tqdm

_LOG_EVERY_SECONDS = 15.0


def tell(line: str) -> None:
    """Print a line on standard error. Do nothing if nobody can read it, because the terminal or the pipe has gone."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class Progress:
    """A counter of units that is shown on standard error. total: None if it is unknown; initial: units done before."""

    def __init__(
        self, total: int | None, description: str, unit: str, *, quiet: bool = False, initial: int = 0
    ) -> None:
        self._description, self._unit, self._total = description, unit, total
        self._count, self._initial = initial, initial
        self._logs = not quiet and not sys.stderr.isatty()
        self._note = ""
        self._started = self._last_log = time.monotonic()
        self._bar = tqdm(
            total=total,
            desc=description,
            unit=unit,
            unit_scale=True,
            initial=initial,
            disable=quiet or self._logs,
            dynamic_ncols=True,
            smoothing=0,  # show the mean speed since the start
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._logs and kind is None:
            self._log()

    def update(self, count: int, **facts: str) -> None:
        """Add `count` units; show `facts` beside the bar or in the log line."""
        self._count += count
        if facts:
            self._note = ", ".join(f"{name} {value}" for name, value in facts.items())
            self._bar.set_postfix_str(self._note, refresh=False)
        self._bar.update(count)
        if self._logs and time.monotonic() - self._last_log > _LOG_EVERY_SECONDS:
            self._log()

    def skip(self, count: int) -> None:
        """Add units that were done before; leave them out of the speed."""
        self._initial += count
        if not self._bar.disable:
            self._bar.initial += count
        self.update(count)

    def _log(self) -> None:
        self._last_log = time.monotonic()
        seconds = max(self._last_log - self._started, 1e-9)
        rate = (self._count - self._initial) / seconds
        total = "" if self._total is None else f"/{self._total:,}"
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"
        pace = (
            f"{speed} {self._unit}/s, {seconds:.0f} s"
            if self._count > self._initial or not self._count
            else "done before"
        )
        note = f", {self._note}" if self._note else ""
        tell(f"{self._description}: {self._count:,}{total} {self._unit}, {pace}{note}")
