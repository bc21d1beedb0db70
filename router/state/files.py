"""Uploaded files and the results of batches, each tenant's in a folder of its own.

    files/<tenant's hash>/<id>        the content
    files/<tenant's hash>/<id>.json   what is known of it; a file without is none yet, or none anymore
    files/uploads/                    what has not arrived whole

A client's name for a file is told back and is otherwise unused. Ids are ours, sort by age and name the files here.
"""

import asyncio
import errno
import os
import re
import time
import unicodedata
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from router.errors import NotFound, Overloaded
from router.state import disk

PREFIX = "file-"
ID = re.compile(r"file-[0-9a-f]{32}")
LONGEST_NAME = 255  # characters
ABANDONED_S = 86_400.0  # an upload that is this old will not be finished
LUMP_BYTES = 1 << 20  # written at a time

Purpose = Literal["batch", "batch_output"]
Order = Literal["asc", "desc"]


class FileObject(Struct, frozen=True, kw_only=True):
    """A file, as OpenAI's API shows it."""

    id: str
    object: Literal["file"] = "file"
    bytes: Annotated[int, Meta(ge=0)]
    created_at: int  # Unix seconds
    expires_at: int  # when it will be deleted
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"


class FileStore:
    """Keeps files until they are deleted, or too old. Blocks while the disk works: call it in a thread."""

    def __init__(self, root: Path, keep_s: float, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._keep_s = keep_s
        self._clock = clock

    def upload(self) -> "Upload":
        """Begin to take a file in."""
        return Upload(self._root / "uploads" / disk.new_id(""))

    def add(
        self, tenant: str, content: Path, filename: str, purpose: Purpose, file_id: str | None = None
    ) -> FileObject:
        """Move what lies at `content` in. With a `file_id` that can be done again after a crash. Raises NotFound: nothing lies there."""
        file_id = file_id or disk.new_id(PREFIX)
        place = self._folder(tenant) / file_id
        place.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # moved before the crash
            os.replace(content, place)
        if not place.exists():
            raise NotFound("There is no such file.")
        created = int(self._clock())
        file = FileObject(
            id=file_id,
            bytes=place.stat().st_size,
            created_at=created,
            expires_at=created + int(self._keep_s),
            filename=tidy_name(filename),
            purpose=purpose,
        )
        with room():
            disk.write_whole(_card(place), msgspec.json.encode(file))
        return file

    def get(self, tenant: str, file_id: str) -> FileObject:
        """What is known of a file. Raises NotFound."""
        if ID.fullmatch(file_id):
            with suppress(FileNotFoundError):
                return msgspec.json.decode(_card(self._folder(tenant) / file_id).read_bytes(), type=FileObject)
        raise NotFound("There is no such file.")

    def path(self, tenant: str, file_id: str) -> Path:
        """Where a file's content lies. Raises NotFound."""
        self.get(tenant, file_id)
        return self._folder(tenant) / file_id

    def page(
        self, tenant: str, *, after: str = "", limit: int = 10_000, order: Order = "desc", purpose: str | None = None
    ) -> tuple[list[FileObject], bool]:
        """A page of a tenant's files by age, those that come after the id `after`; and whether there are more."""
        ids = page_ids((card.stem for card in self._folder(tenant).glob(f"{PREFIX}*.json")), after, order)
        page: list[FileObject] = []
        for file_id in ids:
            with suppress(NotFound):  # deleted meanwhile
                file = self.get(tenant, file_id)
                if purpose in (None, file.purpose):
                    page.append(file)
            if len(page) > limit:
                break
        return page[:limit], len(page) > limit

    def delete(self, tenant: str, file_id: str) -> None:
        """Forget a file. Raises NotFound."""
        place = self.path(tenant, file_id)
        _card(place).unlink(missing_ok=True)
        place.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete what is too old: files, and uploads that came to nothing."""
        now = self._clock()
        for path in self._root.glob("*/*"):
            kept_s = ABANDONED_S if path.parent.name == "uploads" or path.name.startswith(".") else self._keep_s
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < now - kept_s:
                    path.unlink()

    def _folder(self, tenant: str) -> Path:
        return self._root / disk.tenant_folder(tenant)


class Upload:
    """A file that is arriving."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lump = bytearray()
        with room():
            self._file = disk.create(path)

    async def write(self, data: bytes) -> None:
        """Take more of it. Raises Overloaded: the disk is full."""
        self._lump += data
        if len(self._lump) >= LUMP_BYTES:
            lump, self._lump = self._lump, bytearray()
            await asyncio.to_thread(self._write, lump)

    async def keep(self, files: FileStore, tenant: str, filename: str) -> FileObject:
        """All of it is here: make it a file of the tenant's. Raises Overloaded: the disk is full."""
        return await asyncio.to_thread(self._keep, files, tenant, filename)

    def close(self) -> None:
        """Let go of it; what was not moved into the store is gone."""
        with suppress(OSError):  # a full disk again, and nobody needs these bytes
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _keep(self, files: FileStore, tenant: str, filename: str) -> FileObject:
        with room():
            self._file.write(self._lump)
            disk.settle(self._file)
        return files.add(tenant, self._path, filename, "batch")

    def _write(self, data: bytearray) -> None:
        with room():
            self._file.write(data)


@contextmanager
def room() -> Generator[None, None, None]:
    """A full disk is a reason to come back later, not a fault of the code."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Overloaded("The server has no room for this file now; try again later.", retry_after_s=60.0) from None
        raise


def page_ids(ids: Iterator[str], after: str, order: Order) -> list[str]:
    """Ids by age, those that come after one of them; which need not be there anymore."""
    newest_first = order == "desc"
    kept = ids if not after else (name for name in ids if (name < after if newest_first else name > after))
    return sorted(kept, reverse=newest_first)


def tidy_name(name: str) -> str:
    """The last part of a client's name for a file, without characters that could do harm where it is shown."""
    last = re.split(r"[/\\]", name)[-1]
    shown = "".join(char for char in last if unicodedata.category(char)[0] != "C").strip()
    return shown[:LONGEST_NAME] or "file"


def _card(place: Path) -> Path:
    return place.with_name(place.name + ".json")
