"""The cache format: what the teacher side writes and the student side reads.

Imports neither torch nor transformers. The format is specified in storage/FORMAT.md.
"""

from storage.cache import Cache, open_cache
from storage.errors import TeachonceError
from storage.row_stream import RowStream, StreamBatch, StreamState
from storage.verification import Verification, verify_cache

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
