"""What every teachonce command shares: print an error as one line, and stop cleanly on Ctrl-C."""

from __future__ import annotations

import errno
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
    and exit with 2. After Ctrl-C, print the command line that resumes and exit with 130. When the reader of standard
    output has gone, exit with 0. Any other exception keeps its traceback.
    """
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
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
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        fail(
            command[0],
            f"{error.filename or 'output'}: {error.strerror}; {remedy_of(str(error))} and run the line again",
        )


def fail(program: str, message: str) -> NoReturn:
    """Print the message as one line on standard error and exit with 2."""
    one_line = " ".join(message.split())
    tell(f"{program}: error: {one_line}")
    sys.exit(EXIT_BAD_INPUT)
