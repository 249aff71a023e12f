"""One error class for each failure of an import.

```
TeachonceError
├── ImportSourceError      the source is missing, empty, not of its format, or changed while it was read
├── ImportTokenizerError   the tokenizer's directory is not one, or does not fit the source
└── ImportRowError         a row of the source cannot become targets
    ├── MisalignedRowError   its lists do not belong to its tokens
    └── UnknownTokenError    a token's text stands for no id of the tokenizer, or for several
```
"""

from __future__ import annotations

from storage.errors import TeachonceError


class ImportSourceError(TeachonceError):
    """The source at `path` cannot be imported."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}; nothing was written")


class ImportTokenizerError(TeachonceError):
    """The tokenizer at `path` cannot be used for an import."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}; nothing was written")


class ImportRowError(TeachonceError):
    """A row of a source cannot become targets. where: the file and the row."""

    def __init__(self, where: str, problem: str) -> None:
        self.where, self.problem = where, problem
        super().__init__(f"{where}: {problem}; nothing was written")


class MisalignedRowError(ImportRowError):
    """The target lists of a row do not belong to its tokens."""


class UnknownTokenError(ImportRowError):
    """The text of a token stands for no single id of the tokenizer."""
