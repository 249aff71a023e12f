from __future__ import annotations

import hashlib
from pathlib import Path

from storage.disk.hashing import sha256_file


def test_sha256_of_a_file_longer_than_one_piece(tmp_path: Path) -> None:
    content = bytes(range(256)) * (5 << 12)
    (tmp_path / "file").write_bytes(content)
    assert len(content) > 1 << 20
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
