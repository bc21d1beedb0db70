"""Hashed words, pairs of words and 4-grams of bytes of a text, all at once: a few numpy operations over its bytes.

The hash of bytes i..j-1 is sum of (b + 1) P^(n - i), modulo 2^64, which two prefix sums give for any i and j, since the odd P has
an inverse (Karp and Rabin 1987, https://doi.org/10.1147/rd.312.0249; prefix sums make it one subtraction and one product). It is
then mixed (the finalizer of SplitMix64) and its highest bits choose the column, so no vocabulary is kept or needed.
"""

import numpy as np
from numpy.typing import NDArray

BITS = 14  # columns of one family of n-grams: 2^BITS
FAMILIES = 3  # words, pairs, 4-grams of bytes
COLUMNS = FAMILIES << BITS
MOST_BYTES = 1 << 16  # of a text; what comes behind is not read
_LENGTH = 4

_P = 0x9E3779B97F4A7C15
_CODES = np.arange(1, 257, dtype=np.uint64)  # b + 1
_VISIBLE = np.ones(256, dtype=bool)
_VISIBLE[list(b" \t\n\r\x0b\x0c")] = False
_LETTER = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])


def _powers(base: int) -> NDArray[np.uint64]:
    return np.cumprod(np.array([1] + [base] * MOST_BYTES, dtype=np.uint64))


_POWERS = _powers(_P)
_INVERSES = _powers(pow(_P, -1, 1 << 64))
_PAIR = np.uint64(0x9FB21C651E98DF25)


def ngrams(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns and values of a text's n-grams, one entry for each occurrence.

    A word is a run of letters and digits, in any script, or one other sign; 4-grams don't reach over white space, but include it at
    either end. An occurrence counts 1 / sqrt(occurrences in its family), so that long texts don't weigh more.

    Args:
        text: in the case that shall count.

    Returns:
        columns (G,) int64 below COLUMNS, and values (G,) float32.
    """
    data = np.frombuffer(f" {text} ".encode(errors="replace")[:MOST_BYTES], np.uint8)
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(_CODES.take(data) * _POWERS[: len(data)], out=sums[1:])
    letter, visible = _LETTER.take(data), _VISIBLE.take(data)
    apart = np.ones(len(data) + 1, dtype=bool)  # before each byte, and behind the last: no word goes on here
    np.logical_not(letter[1:] & letter[:-1], out=apart[1:-1])
    starts = (visible & apart[:-1]).nonzero()[0]
    lasts = (visible & apart[1:]).nonzero()[0]
    words = (sums[1:].take(lasts) - sums.take(starts)) * _INVERSES.take(starts)
    pairs = words[:-1] * _PAIR + words[1:]
    whole = (visible[1:-2] & visible[2:-1]).nonzero()[0]
    fours = (sums[_LENGTH:].take(whole) - sums.take(whole)) * _INVERSES.take(whole)
    sizes = [len(words), len(pairs), len(fours)]
    columns = _mixed(
        np.concatenate([words, pairs, fours])
    )  # at once: on a short text a call of numpy costs more than its work
    columns[sizes[0] :] += 1 << BITS
    columns[sizes[0] + sizes[1] :] += 1 << BITS
    weights = np.array([size**-0.5 if size else 0.0 for size in sizes], np.float32)
    return columns, weights.repeat(sizes)


def _mixed(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Their columns within a family."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((hashes ^ (hashes >> np.uint64(31))) >> np.uint64(64 - BITS)).astype(np.int64)
