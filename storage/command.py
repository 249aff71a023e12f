"""What every teachonce command shares: print an error as one line, and stop cleanly on Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from storage.errors import TeachonceError, remedy_of
from storage.progress import tell

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_REFUSED = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's main and exit with the code that it returns.

    For a TeachonceError, or an OSError such as a full disk or a missing permission, print one line on standard error
    and exit with 2. Do the same when a library cannot take an argument, such as a path, because it is not UTF-8. After
    Ctrl-C, print the command line that resumes and exit with 130. When the reader of standard output has gone, exit
    with 0. Any other exception keeps its traceback. Characters that the terminal cannot show are printed as escapes.
    """
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    _accept_any_text()
    try:
        sys.exit(main())
    except TeachonceError as error:
        fail(command[0], str(error))
    except KeyboardInterrupt:
        # A process that torchrun started does not know the line that started all of them.
        is_alone = os.environ.get("WORLD_SIZE", "1") in ("", "1")
        line = f":\n  {shlex.join(command)}" if is_alone else ""
        tell(f"\n{command[0]}: stopped; to go on, run the same line again{line}")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except UnicodeEncodeError as error:
        argument = next(filter(_is_not_utf8, command[1:]), None)
        if argument is None or not _is_not_utf8(error.object):
            raise
        fail(command[0], f"{argument}: is not UTF-8; expected a name or text in UTF-8")
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        fail(
            command[0],
            f"{error.filename or 'output'}: {error.strerror}; {remedy_of(str(error))} and run the line again",
        )


def _accept_any_text() -> None:
    """Let texts hold characters that the terminal's encoding lacks, and what is typed hold bytes that are not text."""
    for stream, errors in (
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
        (sys.stdin, "surrogateescape"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            # A caller that has read from stdin already keeps it as it is.
            with contextlib.suppress(io.UnsupportedOperation):
                stream.reconfigure(errors=errors)


def _is_not_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def fail(program: str, message: str) -> NoReturn:
    """Print the message as one line on standard error and exit with 2."""
    one_line = " ".join(message.split())
    tell(f"{program}: error: {one_line}")
    sys.exit(EXIT_BAD_INPUT)
