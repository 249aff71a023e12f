"""The cache format: what the teacher side writes and the student side reads.

Imports neither torch nor transformers. The format is specified in storage/FORMAT.md.
"""

from storage.errors import TeachonceError
from storage.reading.cache import Cache, open_cache
from storage.reading.row_stream import RowStream, StreamBatch, StreamState
from storage.reading.verification import Verification, verify_cache

__all__ = [
    "Cache",
    "RowStream",
    "StreamBatch",
    "StreamState",
    "TeachonceError",
    "Verification",
    "open_cache",
    "verify_cache",
]
