"""Random numbers as a function of their coordinates: what device 71,234,567 draws needs no device before it.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): every word is a
hash of a seed and a counter, so any part of a fleet of 10^9 devices can be drawn alone, in any order, in one
vectorised call, and comes out the same.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_LAST = np.uint64(2**64 - 1)
_SECOND = np.uint64(0x94D049BB133111EB)


def draw_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def seeds_of(seed: int, members: NDArray[np.integer]) -> Words:
    """One seed for each member (device number) of a family named by `seed`; same shape as `members`."""
    return _scramble(_scramble(members.astype(np.uint64) + np.uint64(seed & (2**64 - 1))) + _STEP)


def words(seeds: Words, count: int, start: int = 0) -> Words:
    """Words `start` to `start + count` of every seed's stream: [*seeds.shape, count]."""
    counters = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    return _scramble(seeds[..., None] + counters * _STEP)


def uniforms(seeds: Words, count: int, start: int = 0) -> NDArray[np.float64]:
    """The same as numbers in [0, 1), 53 bits each: [*seeds.shape, count]."""
    return np.asarray((words(seeds, count, start) >> np.uint64(11)) * 2.0**-53)


def normals(seeds: Words, count: int, start: int = 0) -> NDArray[np.float64]:
    """Standard normal numbers, by the inverse of the distribution function: [*seeds.shape, count]."""
    from scipy.special import ndtri

    return np.asarray(ndtri(uniforms(seeds, count, start) + 2.0**-54))


def orders(seeds: Words, count: int, start: int = 0) -> NDArray[np.int64]:
    """A random order of 0 … count-1 for each seed: [seeds, count]."""
    return np.argsort(words(seeds, count, start), axis=1)


def permutations(seeds: Words, counts: NDArray[np.integer], start: int = 0) -> NDArray[np.int64]:
    """The same for 0 … counts[i]-1: [seeds, max count], -1 beyond a row's own count."""
    width = int(counts.max(initial=0))
    if int(counts.min(initial=width)) == width:
        return orders(seeds, width, start)
    keys = words(seeds, width, start)
    beyond = np.arange(width) >= np.asarray(counts)[:, None]
    # Beyond its count a row sorts last: a key of 64 ones has a chance of 2^-64.
    keys[beyond] = _LAST
    order = np.argsort(keys, axis=1)
    order[beyond] = -1
    return order


def sample(seed: int, size: int, count: int) -> NDArray[np.int64]:
    """`count` different numbers of 0 … size-1, every such set as likely as any other; sorted."""
    own = np.array(seed, np.uint64)
    if 2 * count > size:
        return np.sort(np.argsort(words(own, size))[:count])
    # The first `count` different ones of the stream. Some more are drawn at once, for repeats.
    drawn = count + count * count // size + 8
    while True:
        found, first = np.unique((words(own, drawn) % np.uint64(size)).view(np.int64), return_index=True)
        if len(found) >= count:
            return found[first <= np.partition(first, count - 1)[count - 1]] if count else found[:0]
        drawn *= 2


def _scramble(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z ^= z >> np.uint64(27)
    z *= _SECOND
    z ^= z >> np.uint64(31)
    return z
