"""The cache format, which the teacher side writes and the student side reads. storage/FORMAT.md specifies it.

`import storage` imports neither torch nor transformers.
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
