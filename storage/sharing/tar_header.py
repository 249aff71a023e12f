"""Write the ustar headers of packed caches, which tar reads.

`unpack` accepts exactly these bytes, so they must not change. Python's tarfile does not write them: since Python 3.9
it leaves the device numbers empty, and it cuts a long path at another slash.
"""

from __future__ import annotations

from storage.errors import ConfigError

BLOCK_BYTES = 512
END_OF_TAR = bytes(2 * BLOCK_BYTES)
MAX_MEMBER_BYTES = (8 << 30) - 1  # eleven octal digits


def tar_header(path: str, num_bytes: int) -> bytes:
    """Return the 512-byte header of a regular file of num_bytes bytes.

    Raise ConfigError for a path or a size that ustar cannot express.
    """
    prefix, name = _split_name(path)
    if num_bytes > MAX_MEMBER_BYTES:
        raise ConfigError(f"{path}: {num_bytes} bytes; a tar member has at most {MAX_MEMBER_BYTES}: use smaller shards")
    number = b"0000000\0"
    mode, size, mtime = b"0000644\0", b"%011o\0" % num_bytes, b"%011o\0" % 0
    before_checksum = name.ljust(100, b"\0") + mode + number + number + size + mtime
    behind_checksum = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + number + number + prefix.ljust(155, b"\0")
    behind_checksum += bytes(12)
    checksum = sum(before_checksum) + 8 * ord(" ") + sum(behind_checksum)
    return before_checksum + b"%06o\0 " % checksum + behind_checksum


def _split_name(path: str) -> tuple[bytes, bytes]:
    """Return the prefix and name fields of a path: at most 155 and 100 bytes, cut at a slash."""
    encoded = path.encode()
    if len(encoded) <= 100:
        return b"", encoded
    cut = encoded.rfind(b"/", 0, 156)
    if cut < len(encoded) - 101:
        raise ConfigError(f"{path}: too long a path for a tar archive")
    return encoded[:cut], encoded[cut + 1 :]


def padding(num_bytes: int) -> bytes:
    """Return the zero bytes that fill the last block of a file of num_bytes bytes."""
    return bytes(-num_bytes % BLOCK_BYTES)
