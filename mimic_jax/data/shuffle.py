"""Grain's shuffle of many indices at once, in NumPy.

The permutations are those of `grain.MapDataset.shuffle`, which computes one index at a time.

Source: the Simon block cipher (Beaulieu et al., 2013, eprint.iacr.org/2013/404) with 4 rounds on blocks of any even
number of bits, walked along its cycles (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). The round
keys come from C++'s `std::seed_seq`.
"""

import functools
import math

import numpy as np
from jaxtyping import Int, UInt

ROUNDS = 4
# The smallest block, in bits.
MIN_BLOCK = 16
# Up to this length the permutation of an epoch is computed as a whole: walking along a cycle would take long, as few
# values of the smallest block are in range.
SHORT = 2**14

Blocks = UInt[np.ndarray, " blocks"]


def shuffle(positions: Int[np.ndarray, " positions"], *, length: int, seed: int) -> Int[np.ndarray, " positions"]:
    """Elements of an endless sequence of epochs, each with the numbers 0 … length − 1 in an order of its own.

    Equals `grain.MapDataset.range(length).shuffle(seed=seed).repeat()[position]` for each position.

    Args:
      positions: in the sequence, from 0.
      length: of an epoch, at least 1.
      seed: in [0, 2³²).
    """
    epochs, within = np.divmod(positions, length)
    shuffled = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        keys = round_keys((seed + epoch) % 2**32)
        shuffled[rows] = _short(length, keys)[within[rows]] if length <= SHORT else _walk(within[rows], length, keys)
    return shuffled


@functools.lru_cache(maxsize=1024)
def round_keys(seed: int) -> tuple[int, ...]:
    """The uint32 numbers that `std::seed_seq{seed}` generates, one per round (C++20, rand.util.seedseq, 8)."""
    words = [0x8B8B8B8B] * ROUNDS
    mix = lambda word: word ^ word >> 27  # noqa: E731
    for k in range(ROUNDS):
        low = 1664525 * mix(words[k] ^ words[(k + 1) % ROUNDS] ^ words[k - 1]) % 2**32
        high = (low + (1, 1 + seed, 2, 3)[k]) % 2**32
        words[(k + 1) % ROUNDS] = (words[(k + 1) % ROUNDS] + low) % 2**32
        words[(k + 2) % ROUNDS] = (words[(k + 2) % ROUNDS] + high) % 2**32
        words[k] = high
    for k in range(ROUNDS):
        low = 1566083941 * mix((words[k] + words[(k + 1) % ROUNDS] + words[k - 1]) % 2**32) % 2**32
        high = (low - k) % 2**32
        words[(k + 1) % ROUNDS] ^= low
        words[(k + 2) % ROUNDS] ^= high
        words[k] = high
    return tuple(words)


@functools.lru_cache(maxsize=16)
def _short(length: int, keys: tuple[int, ...]) -> Int[np.ndarray, "{length}"]:
    """The permutation of an epoch of at most SHORT examples."""
    if length == 1:
        return np.zeros(1, np.int64)
    blocks = np.arange(2**MIN_BLOCK, dtype=np.uint16)
    encrypted = _encrypt(blocks, MIN_BLOCK // 2, keys).astype(np.int64)
    # Where a walk that starts at a value has come to after 1, 2, 4, … steps; it stays at the first value in range.
    reached = np.where(blocks < length, blocks, encrypted)
    permutation = encrypted[:length]
    while (permutation >= length).any():
        permutation, reached = reached.take(permutation), reached.take(reached)
    return permutation


def _walk(within: Int[np.ndarray, " indices"], length: int, keys: tuple[int, ...]) -> Int[np.ndarray, " indices"]:
    """Encrypts indices again and again, each until it is in range."""
    # Grain's formula gives one bit too few where length − 1 is 2¹⁶, 2¹⁸, …. One number is then missing from every epoch
    # and another comes twice. It is kept, as resumed runs depend on it.
    bits = math.ceil(math.log2(length - 1))
    word = max(bits + bits % 2, MIN_BLOCK) // 2
    values = within.astype(np.uint64)
    pending = np.arange(len(values))
    while len(pending):
        values[pending] = moved = _encrypt(values[pending], word, keys)
        pending = pending[moved >= length]
    return values.astype(np.int64)


def _encrypt(blocks: Blocks, word: int, keys: tuple[int, ...]) -> Blocks:
    """Simon's rounds on blocks of two words of `word` bits."""
    mask = 2**word - 1
    left, right = blocks >> word & mask, blocks & mask
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left = left ^ _mixed(right, word, mask) ^ (first & mask)
        right = right ^ _mixed(left, word, mask) ^ (second & mask)
    return left << word | right


def _mixed(words: Blocks, word: int, mask: int) -> Blocks:
    """Simon's F: words rotated by 1, 8 and 2 bits to the left."""
    by1, by8, by2 = (words << bits | words >> (word - bits) for bits in (1, 8, 2))
    return (by1 & by8 ^ by2) & mask
