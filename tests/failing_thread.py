"""A thread whose failures a test wants to see."""

from __future__ import annotations

import threading
from collections.abc import Callable


def start_failing(action: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Start a thread that runs `action`; what it raises is added to the list."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, failures
