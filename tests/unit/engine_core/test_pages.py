"""Pages: nobody's cache is overwritten, promises are kept, equal prefixes are found and only they. The cache is a dictionary."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from engine_core.pages import NOWHERE, PAGE, PagePool, Pages, PrefixHashes, first_page, pages_needed

MOST_ROWS = 40
LONGEST = 7 * PAGE


@dataclass(eq=False)
class Reader:
    """A sequence that encodes its tokens and reads them back."""

    key: str
    tokens: list[int]
    pages: Pages
    hashes: PrefixHashes
    promised: int
    encoded: int = 0

    def held(self) -> list[int]:
        return [page for page in self.pages.table if page != NOWHERE]

    def known_as(self, position: int) -> tuple[str, tuple[int, ...]]:
        """What stands at a position, and all that it depends on."""
        return self.key, tuple(self.tokens[: position + 1])


class PagesOfManySequences(RuleBasedStateMachine):
    """Sequences with common beginnings take, share, forget and release the pages of a small pool, in any order."""

    readers = Bundle("readers")

    @initialize(window=st.sampled_from([None, 1, 2, 16, 17, 33, 60]), count=st.integers(9, 30))
    def begin(self, window: int | None, count: int) -> None:
        self.window = window
        self.count = count
        self.pool = PagePool(count)
        self.cache: dict[tuple[int, int], object] = {}  # of a page and an offset
        self.live: list[Reader] = []

    @rule(
        target=readers,
        key=st.sampled_from(["", "a"]),
        shared=st.integers(0, 5 * PAGE),
        own=st.integers(1, PAGE + 1),
        last=st.integers(0, 1),
    )
    def admit(self, key: str, shared: int, own: int, last: int) -> Reader | None:
        tokens = [i % 3 for i in range(shared)] + [last] * own
        needed = pages_needed(LONGEST, self.window, MOST_ROWS)
        if needed > self.pool.available:
            return None
        reader = Reader(
            key, tokens, Pages(self.pool, LONGEST, self.window, MOST_ROWS), PrefixHashes(key), promised=needed
        )
        self.live.append(reader)
        found = [self.pool.find(known_as) for known_as in reader.hashes.of(tokens)]
        for whole in range(len(found), 0, -1):
            first = first_page(whole * PAGE, self.window)
            if NOWHERE not in found[first:whole]:
                reader.pages.adopt([NOWHERE] * first + found[first:whole])
                reader.encoded = whole * PAGE
                break
        return reader

    @rule(reader=readers, rows=st.integers(1, MOST_ROWS))
    def encode(self, reader: Reader | None, rows: int) -> None:
        if reader not in self.live:
            return
        count = min(rows, len(reader.tokens) - reader.encoded)
        end = min(reader.encoded + rows, LONGEST)
        own = self._taken_by(reader, end)
        assert not own & {page for other in self.live if other is not reader for page in other.held()}
        for position in range(reader.encoded, end):  # tokens, and behind them a canvas that is still noise
            wanted = reader.known_as(position) if position < reader.encoded + count else "noise"
            self.cache[reader.pages.table[position // PAGE], position % PAGE] = wanted
        start, reader.encoded = reader.encoded, reader.encoded + count
        hashes = reader.hashes.of(reader.tokens[: reader.encoded])
        for i in range(start // PAGE, len(hashes)):
            self.pool.make_known(reader.pages.table[i], hashes[i])
        reader.pages.forget(reader.encoded)
        first = first_page(reader.encoded, self.window)
        assert reader.pages.table[:first] == [NOWHERE] * first
        assert NOWHERE not in reader.pages.table[first:]

    def _taken_by(self, reader: Reader, positions: int) -> set[int]:
        before = len(reader.pages.table)
        reader.pages.reach(positions)
        assert len(reader.pages.table) == max(before, -(-positions // PAGE))
        return set(reader.pages.table[before:])

    @rule(reader=readers, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=PAGE))
    def go_on(self, reader: Reader | None, tokens: list[int]) -> None:
        if reader in self.live and reader and len(reader.tokens) + len(tokens) + MOST_ROWS <= LONGEST:
            reader.tokens += tokens

    @rule(reader=consumes(readers))
    def release(self, reader: Reader | None) -> None:
        if reader and reader in self.live:
            reader.pages.release()
            self.live.remove(reader)

    @precondition(lambda self: self.live)
    @rule()
    def release_all(self) -> None:
        while self.live:
            self.live.pop().pages.release()
        assert self.pool.in_use() == 0
        assert self.pool.available == self.count - 1

    @invariant()
    def every_row_reads_what_its_sequence_wrote(self) -> None:
        for reader in self.live:
            first = 0 if self.window is None else max(0, reader.encoded - self.window + 1)
            for position in range(first, reader.encoded):
                page = reader.pages.table[position // PAGE]
                assert self.cache[page, position % PAGE] == reader.known_as(position)

    @invariant()
    def a_page_has_one_owner_or_the_same_prefix_for_all(self) -> None:
        owners: dict[int, tuple[int, tuple[str, tuple[int, ...]]]] = {}
        for reader in self.live:
            for i, page in enumerate(reader.pages.table):
                if page == NOWHERE:
                    continue
                assert 0 < page < self.count
                whole = (i + 1) * PAGE <= reader.encoded
                holds = (i, reader.known_as((i + 1) * PAGE - 1) if whole else (f"only {id(reader)}", ()))
                assert owners.setdefault(page, holds) == holds

    @invariant()
    def nothing_leaks(self) -> None:
        used = {page for reader in self.live for page in reader.held()}
        assert self.pool.in_use() == len(used)
        assert self.pool.available == self.count - 1 - sum(reader.promised for reader in self.live)
        assert all(len(reader.held()) <= reader.promised for reader in self.live)


TestPagesOfManySequences = PagesOfManySequences.TestCase
TestPagesOfManySequences.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def known(pool: PagePool, names: str) -> Mapping[str, int]:
    """Pages that hold something and belong to nobody, given back in this order."""
    pages = {name: pool.take() for name in names}
    for name, page in pages.items():
        pool.make_known(page, name.encode())
        pool.give_back(page)
    return pages


def test_the_page_unused_longest_is_evicted_first() -> None:
    pool = PagePool(5)
    pages = known(pool, "abcd")
    pool.share(pages["a"])
    pool.give_back(pages["a"])
    assert [pool.take() for _ in range(4)] == [pages[name] for name in "bcda"]


def test_free_pages_are_taken_before_any_is_evicted() -> None:
    pool = PagePool(5)
    pages = known(pool, "ab")
    fresh = {pool.take(), pool.take()}
    assert not fresh & set(pages.values())
    assert pool.find(b"a") == pages["a"]
    assert pool.take() == pages["a"]
    assert pool.find(b"a") == NOWHERE


def test_a_known_page_in_use_is_never_anybodys_own() -> None:
    pool = PagePool(4)
    pages = known(pool, "abc")
    pool.share(pages["a"])
    pool.share(pages["a"])
    pool.give_back(pages["a"])
    assert {pool.take(), pool.take()} == {pages["b"], pages["c"]}
    assert pool.find(b"a") == pages["a"]
    assert pool.in_use() == 3


def test_the_first_of_two_equal_pages_stays_known_and_the_other_is_free_at_once() -> None:
    pool = PagePool(3)
    first, second = pool.take(), pool.take()
    pool.make_known(first, b"x")
    pool.make_known(second, b"x")
    assert pool.find(b"x") == first
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take() == second
    assert pool.find(b"x") == first


def test_the_end_of_a_released_sequence_is_evicted_before_its_beginning() -> None:
    pool = PagePool(4)
    pages, hashes = Pages(pool, 3 * PAGE, None, 1), PrefixHashes("").of([0] * 3 * PAGE)
    pages.reach(3 * PAGE)
    for page, known_as in zip(pages.table, hashes, strict=True):
        pool.make_known(page, known_as)
    pages.release()
    pool.take()
    assert [pool.find(known_as) != NOWHERE for known_as in hashes] == [True, True, False]


@pytest.mark.parametrize(
    ("encoded", "window", "page"),
    [
        (10**6, None, 0),
        (0, 32, 0),
        (31 + PAGE - 1, 32, 0),  # the row at 46 sees position 15 still
        (31 + PAGE, 32, 1),
        (PAGE, 1, 1),  # a window of 1: a row sees itself only
        (PAGE - 1, 1, 0),
    ],
)
def test_the_first_visible_page(encoded: int, window: int | None, page: int) -> None:
    assert first_page(encoded, window) == page


@given(st.integers(0, 500), st.none() | st.integers(1, 100), st.integers(1, 100))
def test_a_promise_is_for_all_that_rows_of_one_step_see_and_no_more_than_a_page_over(
    encoded: int, window: int | None, rows: int
) -> None:
    longest = encoded + rows
    seen = -(-longest // PAGE) - first_page(encoded, window)
    promised = pages_needed(longest, window, rows)
    assert seen <= promised <= -(-longest // PAGE)
    if window is not None:
        assert promised <= (window + rows) // PAGE + 2


tokens = st.lists(st.integers(0, 2), max_size=5 * PAGE)


@given(st.text(max_size=3), tokens, st.text(max_size=3), tokens)
def test_pages_are_known_alike_only_for_equal_keys_and_equal_tokens_from_the_start(
    key: str, ids: list[int], other_key: str, other_ids: list[int]
) -> None:
    hashes, others = PrefixHashes(key).of(ids), PrefixHashes(other_key).of(other_ids)
    assert len(hashes) == len(ids) // PAGE
    for i, known_as in enumerate(hashes):
        for j, other in enumerate(others):
            same = key == other_key and ids[: (i + 1) * PAGE] == other_ids[: (j + 1) * PAGE]
            assert (known_as == other) == same


def test_a_key_never_runs_over_into_the_tokens() -> None:
    nothing = "\0" * (8 * PAGE)  # as bytes what a page of token 0 is
    assert not set(PrefixHashes("").of([0] * 3 * PAGE)) & set(PrefixHashes(nothing).of([0] * 3 * PAGE))


def test_any_text_is_a_key() -> None:
    assert len(PrefixHashes("\ud800").of([0] * PAGE)) == 1


@given(st.lists(st.integers(0, 2**18), max_size=4 * PAGE), st.lists(st.integers(0, 4 * PAGE)))
def test_hashes_of_growing_tokens_are_those_of_the_whole(ids: list[int], lengths: list[int]) -> None:
    growing, whole = PrefixHashes("k"), PrefixHashes("k").of(ids)
    for length in lengths:
        assert growing.of(ids[:length]) == whole[: min(length, len(ids)) // PAGE]
