"""Random numbers that are the same on every machine: a counter hashed by SplitMix64 (Steele, Lea, Flood 2014).

Framework generators change between releases and devices. Here value i of stream s under seed k is a pure integer function of
(k, s, i), so rows can be drawn in any order, in parallel, and after a resume.
"""

from __future__ import annotations

import zlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def bits(seed: int, n: int, *, stream: str = "", start: int = 0) -> np.ndarray:
    """``n`` uint64 values from position ``start`` of the named stream."""
    key = _mix(np.array([(seed & 0xFFFFFFFFFFFFFFFF) ^ (zlib.crc32(stream.encode()) << 32)], dtype=np.uint64))
    with np.errstate(over="ignore"):
        return _mix(key + (np.arange(start, start + n, dtype=np.uint64) + np.uint64(1)) * _GOLDEN)


def _mix(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def part_seed(seed: int, part: int) -> int:
    """Seed (52 bits) of part ``part`` (a slice, a stage) of what is seeded ``seed``. Parts of neighbouring seeds, and parts of parts,
    have nothing in common, as they would with ``seed + part``."""
    return int(bits(seed, 1, stream="part", start=part)[0] >> np.uint64(12))


def uniform(seed: int, n: int, *, stream: str = "") -> np.ndarray:
    """float64 in [0, 1), multiples of 2^-53."""
    return (bits(seed, n, stream=stream) >> np.uint64(11)) * 2.0**-53


def signs(seed: int, n: int, *, stream: str = "signs") -> np.ndarray:
    """float32 values -1 or +1."""
    return np.where(bits(seed, n, stream=stream) >> np.uint64(63), np.float32(1), np.float32(-1))


def normal(seed: int, n: int, *, stream: str = "normal") -> np.ndarray:
    """float32 standard normal values (Box-Muller in float64; its logarithm may differ in the last bit between machines)."""
    half = (n + 1) // 2
    u, v = uniform(seed, half, stream=stream + "/u"), uniform(seed, half, stream=stream + "/v")
    radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * np.pi * v
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n].astype(np.float32)


def permutation(seed: int, n: int, *, stream: str = "permutation") -> np.ndarray:
    """int64 permutation of 0..n-1."""
    return np.argsort(bits(seed, n, stream=stream), kind="stable")


def choice(seed: int, n: int, k: int, *, stream: str = "choice") -> np.ndarray:
    """``k`` distinct int64 values of 0..n-1, in random order."""
    keys = bits(seed, n, stream=stream)
    if k >= n:
        return np.argsort(keys, kind="stable")
    head = np.argpartition(keys, k)[:k]
    return head[np.argsort(keys[head], kind="stable")]


def subset(seed: int, n: int, k: int, *, stream: str = "choice") -> np.ndarray:
    """The values of ``choice``, ascending: a third of the time."""
    return np.arange(n) if k >= n else np.sort(np.argpartition(bits(seed, n, stream=stream), k)[:k])
