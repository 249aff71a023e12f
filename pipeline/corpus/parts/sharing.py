"""Share the parts of a corpus among processes, as they share shards.

A part lies in a directory of its own, which appears when it is complete. A process claims a part that is neither there
nor claimed, the first ones first. So finished parts stay, and that of a process that dies is made by another.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from pipeline.corpus.parts.writing import TokenizationPlan, TokenizedPart, counts_of, write_part
from pipeline.work.claims import Claims
from storage.disk.files import refusals
from storage.errors import TeachonceError, WriteRefusedError
from storage.progress import Progress


def _ignore(num_tokens: int) -> None:
    pass


class SharedParts:
    """The parts of a plan, in the directory of an entry that is to be made out of them.

    entry: where the joined stores of the text are to appear. The parts lie beside it until then.
    """

    def __init__(self, plan: TokenizationPlan, entry: Path) -> None:
        self._plan, self._entry = plan, entry
        self._directory = entry.with_name(f"{entry.name}-parts")
        # The parts before `_first` are made, and hold `_num_before` tokens.
        self._first = self._num_before = 0

    def make_all(self) -> None:
        """Make every part that the run needs and that no other process is making. Return when all are made.

        Raises the error of the first part that has one: DataError, TeacherError or WriteRefusedError.
        """
        config = self._plan.config
        failed: set[int] = set()
        made: set[int] = set()
        with (
            Claims(self._entry.parent) as claims,
            Progress(config.max_tokens, "tokenize", "tokens", quiet=config.quiet) as bar,
        ):
            while not self.are_enough(made, bar.skip):
                index = next((i for i in self._missing(failed) if claims.take(self._claim_name(i))), None)
                if index is None:
                    claims.wait()
                    continue
                try:
                    self.make(index, bar.update)
                    made.add(index)
                except WriteRefusedError:
                    raise
                except TeachonceError:
                    # Unless it is the first, a part before it may have another error, or tokens enough.
                    if index == self._first:
                        raise
                    failed.add(index)
                claims.give_back(self._claim_name(index))

    @property
    def num_parts(self) -> int:
        """Number of parts of the text; 0 when it is tokenized."""
        return 0 if self._entry.exists() else len(self._plan.parts)

    def make(self, index: int, count: Callable[[int], object] = _ignore) -> None:
        """Make a part unless it is made. count: called with the number of tokens of each piece."""
        if self._is_made(index) or self._entry.exists():
            return
        max_tokens = self._plan.config.max_tokens
        room = None if max_tokens is None else max_tokens - self._num_before
        with self.unless_joined():
            self._write(index, self._part_dir(index), room, count)

    def are_enough(self, own: Container[int] = (), count: Callable[[int], object] = _ignore) -> bool:
        """Return whether no more parts are needed. Call `count` with the tokens of each part that is not `own`."""
        max_tokens = self._plan.config.max_tokens
        while not self._entry.exists():
            if self._first == len(self._plan.parts) or (max_tokens is not None and self._num_before >= max_tokens):
                return True
            if not self._is_made(self._first):
                return False
            with self.unless_joined():
                num_tokens = counts_of(self._part_dir(self._first)).num_tokens
                if self._first not in own:
                    count(num_tokens)
                self._first, self._num_before = self._first + 1, self._num_before + num_tokens
        return True

    def needed(self) -> Iterator[TokenizedPart]:
        """Yield the parts that hold the tokens of the run, in order. The last one ends where --max-tokens does."""
        left = self._plan.config.max_tokens
        for index in range(len(self._plan.parts)):
            part = TokenizedPart(self._plan, self._part_dir(index))
            if left is not None and part.counts.num_tokens >= left != part.counts.room:
                directory = self._part_dir(index).with_suffix(f".{left}")
                self._write(index, directory, left, _ignore)
                part = TokenizedPart(self._plan, directory)
            yield part
            if left is not None and (left := left - part.counts.num_tokens) <= 0:
                return

    @contextlib.contextmanager
    def unless_joined(self) -> Iterator[None]:
        """Go on behind the block if files are gone because another process has joined the parts, and removed them.

        With --max-tokens it may do so while this one is at a part that is not needed.
        """
        try:
            yield
        except (FileNotFoundError, WriteRefusedError):
            if not self._entry.exists():
                raise

    def remove(self) -> None:
        """Remove the parts, which nobody needs when the entry is there."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _missing(self, failed: set[int]) -> Iterator[int]:
        wanted = (index for index in range(self._first, len(self._plan.parts)) if not self._is_made(index))
        return (index for index in wanted if index == self._first or index not in failed)

    def _write(self, index: int, directory: Path, room: int | None, count: Callable[[int], object]) -> None:
        with staged(directory) as staging:
            write_part(self._plan, self._plan.parts[index], staging, room, count)

    def _is_made(self, index: int) -> bool:
        return self._part_dir(index).exists()

    def _part_dir(self, index: int) -> Path:
        return self._directory / f"{index:06d}"

    def _claim_name(self, index: int) -> str:
        return f"{self._entry.name}-part-{index:06d}"


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """Yield the name of a new directory, which gets the name `directory` when the block ends without an error.

    The first process to finish wins; what another one made is removed. Raises WriteRefusedError.
    """
    staging = directory.with_name(f"{directory.name}-{secrets.token_hex(8)}")
    try:
        yield staging
        with refusals(directory):
            try:
                staging.rename(directory)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
