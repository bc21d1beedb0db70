"""Who has which page of the cache, and which pages can be used again by a request with an equal prefix. Imports no torch.

Layers of one kind share their page numbers: page p of a sequence holds keys and values of 16 positions in every layer of that kind. A page that
is full of encoded tokens can serve every sequence that begins with the same tokens under the same key; it is known by a hash over key and
tokens from the start. When its last user goes, such a page stays until its place is needed, the longest unused first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

PAGE = 16  # positions
Kind = Literal["sliding_attention", "full_attention"]  # of layers, as transformers names them
NOWHERE = 0  # the page that nothing is read from


class PagePool:
    """The pages of one kind of layers, 1 to `count` - 1; page 0 is never given out."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, 0, -1))
        self._users = [0] * count
        self._hash_of: dict[int, bytes] = {}
        self._known: dict[bytes, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # known and without users, the longest unused first
        self.available = count - 1  # pages not promised to any sequence

    def take(self) -> int:
        """A page of one's own; what it held is forgotten. There is one for each that was promised."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._unused.popitem(last=False)
            del self._known[self._hash_of.pop(page)]
        self._users[page] = 1
        return page

    def find(self, known_as: bytes) -> int:
        """The page with these tokens, or `NOWHERE`."""
        return self._known.get(known_as, NOWHERE)

    def share(self, page: int) -> None:
        """Become one more user of a known page."""
        self._unused.pop(page, None)
        self._users[page] += 1

    def make_known(self, page: int, known_as: bytes) -> None:
        """From now on this page can be found; if its twin is known already, that one stays."""
        if known_as not in self._known and page not in self._hash_of:
            self._known[known_as] = page
            self._hash_of[page] = known_as

    def give_back(self, page: int) -> None:
        """Stop using a page."""
        self._users[page] -= 1
        if self._users[page] == 0:
            if page in self._hash_of:
                self._unused[page] = None
            else:
                self._free.append(page)

    def in_use(self) -> int:
        """Pages that somebody has."""
        return len(self._users) - 1 - len(self._free) - len(self._unused)


class Pages:
    """The pages of one sequence, in one pool: a table with a page for every 16 positions.

    With a `window` (a sliding layer), pages that no later row can see are given back as the sequence grows. A sequence is promised the
    most it can have at once, so `reach` never fails; a shared page counts for each of its users, which keeps that promise simple.
    """

    def __init__(self, pool: PagePool, longest: int, window: int | None, most_rows: int) -> None:
        """Promise oneself what a sequence of at most `longest` positions needs, with at most `most_rows` rows in a step."""
        self.pool = pool
        self.table: list[int] = []
        self._window = window
        self._gone = 0  # pages given back at the front
        self._promised = pages_needed(longest, window, most_rows)
        pool.available -= self._promised

    def reach(self, positions: int) -> None:
        """Have a page for each of the first `positions`."""
        while len(self.table) * PAGE < positions:
            self.table.append(self.pool.take())

    def adopt(self, pages: Sequence[int]) -> None:
        """Begin with these known pages, or `NOWHERE`s, of an equal prefix."""
        for page in pages:
            if page != NOWHERE:
                self.pool.share(page)
        self.table = list(pages)
        self._gone = next((i for i, page in enumerate(pages) if page != NOWHERE), len(pages))

    def forget(self, encoded: int) -> None:
        """Give back what no row at or behind position `encoded` can see."""
        if self._window is None:
            return
        while self._gone < first_page(encoded, self._window):
            self.pool.give_back(self.table[self._gone])
            self.table[self._gone] = NOWHERE
            self._gone += 1

    def release(self) -> None:
        """Give everything back; the end first, because a beginning is of use without it."""
        for page in reversed(self.table):
            if page != NOWHERE:
                self.pool.give_back(page)
        self.pool.available += self._promised
        self.table, self._promised = [], 0


def first_page(encoded: int, window: int | None) -> int:
    """The first page that rows at or behind position `encoded` can see."""
    return 0 if window is None else max(0, encoded - window + 1) // PAGE


def pages_needed(longest: int, window: int | None, most_rows: int) -> int:
    """The most pages that a sequence of `longest` positions has at once."""
    whole = -(-longest // PAGE)
    return whole if window is None else min(whole, -(-(window - 1 + most_rows) // PAGE) + 1)


class PrefixHashes:
    """What each full page of a growing list of tokens is known as: a hash over a key and all tokens up to the page's end."""

    def __init__(self, key: str) -> None:
        of_key = hashlib.blake2b(
            key.encode(errors="surrogatepass")
        ).digest()  # always 64 bytes: no key looks like tokens
        self._so_far = hashlib.blake2b(of_key, digest_size=16)
        self._hashes: list[bytes] = []

    def of(self, tokens: Sequence[int]) -> list[bytes]:
        """One for each full page; the tokens of the last call must be a prefix of these, or the other way round."""
        for start in range(len(self._hashes) * PAGE, len(tokens) - PAGE + 1, PAGE):
            self._so_far.update(array("q", tokens[start : start + PAGE]).tobytes())
            self._hashes.append(self._so_far.digest())
        return self._hashes[: len(tokens) // PAGE]
