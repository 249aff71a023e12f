"""What every teachonce command does around its work: one line for an error, a clean stop on Ctrl-C."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from storage.errors import TeachonceError, remedy_of

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_REFUSED = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's main and exit.

    Exit code 2 and one line on standard error for a TeachonceError or a full disk, 130 with the line
    that resumes for Ctrl-C; any other exception keeps its traceback.
    """
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    try:
        sys.exit(main())
    except TeachonceError as error:
        fail(command[0], str(error))
    except KeyboardInterrupt:
        # Who started this one among several processes knows how.
        is_alone = os.environ.get("WORLD_SIZE", "1") in ("", "1")
        line = f":\n  {shlex.join(command)}" if is_alone else ""
        print(f"\n{command[0]}: stopped; to go on, run the same line again{line}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        fail(
            command[0],
            f"{error.filename or 'output'}: {error.strerror}; {remedy_of(str(error))} and run the line again",
        )


def fail(program: str, message: str) -> NoReturn:
    """Print one line and exit with 2."""
    one_line = " ".join(message.split())
    print(f"{program}: error: {one_line}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
