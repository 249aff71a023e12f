"""Show the progress of a run: a bar for each kind of rows."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType

from pipeline.plan import ShardRange
from storage.progress import Progress


class KindProgress:
    """Progress bars by kind. A bar opens with the first rows of its kind and closes with the last."""

    def __init__(self, shards: list[ShardRange], *, quiet: bool) -> None:
        self._quiet = quiet
        self._left: Counter[str] = Counter()
        for shard in shards:
            self._left[shard.key.kind] += shard.num_rows
        self._open: dict[str, Progress] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> KindProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in self._open.values():
            bar.__exit__(kind, error, trace)

    def count(self, kind: str, num_rows: int, is_new: bool) -> None:
        """Count written rows of a kind. is_new: this run wrote them. Any thread may call this."""
        with self._lock:
            if kind not in self._open:
                self._open[kind] = Progress(self._left[kind], kind, "rows", quiet=self._quiet)
            bar = self._open[kind]
            (bar.update if is_new else bar.skip)(num_rows)
            self._left[kind] -= num_rows
            if self._left[kind] == 0:
                self._open.pop(kind).__exit__(None, None, None)
