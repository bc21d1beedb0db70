"""Server-sent events: bytes in, data out, as https://html.spec.whatwg.org/multipage/server-sent-events.html says."""


class TooLong(ValueError):
    """A line or an event is longer than what is read of one."""


class EventParser:
    """Cuts a stream of bytes into the data of its events, wherever the chunks end. What isn't `data` is passed over."""

    def __init__(self, most_bytes: int) -> None:
        """Start a stream; no event may have more than `most_bytes`."""
        self._most = most_bytes
        self._line = bytearray()  # its end has not come yet
        self._data: list[bytes] = []  # of the event that has not ended yet
        self._size = 0
        self._after_cr = False  # a line feed that comes now belongs to the line before
        self._first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of all events that this chunk completes. Raises TooLong."""
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        *ended, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        events: list[bytes] = []
        for piece in ended:
            if (data := self._end_line(bytes(self._line) + piece)) is not None:
                events.append(data)
            self._line.clear()
        self._line += rest
        self._limit(self._size + len(self._line))
        return events

    def _end_line(self, line: bytes) -> bytes | None:
        if self._first:
            line, self._first = line.removeprefix(b"\xef\xbb\xbf"), False
        if line:
            field, _, value = line.partition(b":")
            if field == b"data":
                value = value.removeprefix(b" ")
                self._data.append(value)
                self._size += len(value)
            self._limit(self._size)
            return None
        data, self._data, self._size = self._data, [], 0
        return b"\n".join(data) if data else None

    def _limit(self, size: int) -> None:
        if size > self._most:
            raise TooLong(f"expected events of at most {self._most} bytes, got a longer one")
