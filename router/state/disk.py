"""Files that survive a crash: replaced as a whole, or appended to line by line."""

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def new_id(prefix: str) -> str:
    """A name that nothing else has. Names sort by the time they were made."""
    return f"{prefix}{time.time_ns():016x}{secrets.token_hex(8)}"


def tenant_folder(tenant: str) -> str:
    """What a tenant's folder is called; says nothing of the tenant and is safe in any path."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]


def create(path: Path) -> BinaryIO:
    """A new file that only the gateway's own user may read, open for writing; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "xb", buffering=1 << 20, opener=_private)


def settle(file: BinaryIO) -> None:
    """Close a file once what was written to it is on the disk."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def sync_folder(folder: Path) -> None:
    """Names that were made or removed in a folder are so on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO, None, None]:
    """Write a file's new content. Whatever happens, the file has its old content or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = create(temporary)
    try:
        yield file
        settle(file)
        os.replace(temporary, path)
    except BaseException:
        file.close()
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file's content, or make the file."""
    with replacing(path) as file:
        file.write(data)


def keep_lines(path: Path, good: Callable[[bytes], bool]) -> None:
    """Drop all lines of a file that aren't good, and a last one that a crash cut short. No file is no lines.

    Args:
        path: of the file.
        good: looks at a line with its newline; may be asked twice about the same one.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        whole = all(line.endswith(b"\n") and good(line) for line in file)
    if whole:
        return
    with path.open("rb") as file, replacing(path) as kept:
        kept.writelines(line for line in file if line.endswith(b"\n") and good(line))


class Appender:
    """Appends lines to a file, each at once: what `add` returned from outlives the process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, line: bytes) -> None:
        """Append a line, which ends with a newline. Raises OSError: it is there in part at most."""
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._handle, rest) :]

    def close(self) -> None:
        """Close the file once its lines are on the disk."""
        os.fsync(self._handle)
        os.close(self._handle)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
