"""Entropy coding: interleaved range asymmetric numeral systems (Duda 2013; Giesen: Interleaved entropy coders, 2014).

A symbol s of a table with integer frequencies f_s that sum to M = 2^16 costs log2(M / f_s) bits, and about 0.003 more. Each of L lanes
has a state x in [2^16, 2^32); symbol number t belongs to lane t mod L. Coding goes backwards, so that decoding goes forwards:

    encode   if x >= f_s 2^16: write x mod 2^16, x = x / 2^16            x = (x / f_s) M + (x mod f_s) + c_s
    decode   slot = x mod M, s: c_s <= slot < c_s + f_s                  x = f_s (x / M) + slot - c_s,   if x < 2^16: x = x 2^16 + word

The lanes share one stream of 16-bit words, read in order of lanes. A stream is the L states (4 bytes each), then the words, all little
endian; its number of symbols is not in it. L = symbols / 8192, at least 1, at most 4096: the states cost 32/8192 bits a symbol. All of it
is integers: the same bytes everywhere. A stream that was not written by ``encode`` for these tables and this number of symbols either
is refused or gives other symbols of the tables; nothing in it decides how much memory or time is spent.
"""

from __future__ import annotations

import numpy as np

from codeword.errors import CodewordError, FormatError

TOTAL_BITS = 16
TOTAL = 1 << TOTAL_BITS
"""M: what the frequencies of a table sum to."""
SYMBOLS_PER_LANE = 8192
MOST_LANES = 4096
OVERHEAD = 0.003 + 32 / SYMBOLS_PER_LANE
"""Bits a symbol, beyond the ideal, that a long stream takes: rounding of the states, and the states themselves."""


def frequencies(counts: np.ndarray) -> np.ndarray:
    """int64 (k,) integer frequencies >= 1 with sum TOTAL, in proportion to ``counts`` (k,) >= 0; 1 <= k <= TOTAL."""
    weight = np.asarray(counts, np.float64)
    if not 1 <= len(weight) <= TOTAL or not np.isfinite(weight).all() or (weight < 0).any():
        raise CodewordError(f"rans got a table of {len(weight)} counts; 1..{TOTAL} finite ones >= 0 are needed")
    total = weight.sum()
    share = weight / total if total > 0 else np.full(len(weight), 1 / len(weight))
    whole = 1 + np.floor(share * (TOTAL - len(weight))).astype(np.int64)
    whole[int(share.argmax())] += TOTAL - whole.sum()
    return whole


class Tables:
    """Frozen tables of several models: ``frequency`` (total,) all tables one after the other, ``sizes`` (models,) symbols of each."""

    def __init__(self, frequency: np.ndarray, sizes: np.ndarray) -> None:
        frequency, sizes = np.asarray(frequency, np.int64), np.asarray(sizes, np.int64)
        if frequency.ndim != 1 or sizes.ndim != 1 or not len(sizes) or (sizes < 1).any() or sizes.sum() != len(frequency):
            raise CodewordError(f"rans got {frequency.shape} frequencies for tables of {sizes.sum() if sizes.size else 0} symbols in all")
        self.first = np.concatenate(([0], np.cumsum(sizes)))[:-1]
        if (frequency < 1).any() or (np.add.reduceat(frequency, self.first) != TOTAL).any():
            raise CodewordError(f"rans got a table whose frequencies are not >= 1 with sum {TOTAL}")
        self.sizes, self.frequency = sizes, frequency.astype(np.uint64)
        ends = np.cumsum(frequency)
        # Model m's symbols start at m TOTAL + c_s, ascending over all models: one search finds a symbol from model and slot.
        self.starts = ends - frequency
        self.cumulative = (self.starts % TOTAL).astype(np.uint64)

    def bits(self, symbols: np.ndarray, models: np.ndarray) -> float:
        """Ideal code length of ``symbols`` (n,) of ``models`` (n,)."""
        return float((TOTAL_BITS - np.log2(self.frequency[self._place(symbols, models)])).sum())

    def entropy(self) -> np.ndarray:
        """float64 (models,): mean bits of a symbol drawn from each table."""
        share = self.frequency / TOTAL
        return np.add.reduceat(-share * np.log2(share), self.first)

    def encode(self, symbols: np.ndarray, models: np.ndarray) -> np.ndarray:
        """uint8 stream of integer ``symbols`` (n,), each of its model's table."""
        place = self._place(symbols, models)
        count = len(place)
        lanes = _lanes(count)
        state = np.full(lanes, TOTAL, np.uint64)
        words = []
        for begin in reversed(range(0, count, lanes)):
            part = place[begin:begin + lanes]
            frequency, x = self.frequency[part], state[:len(part)]
            full = x >= frequency << np.uint64(16)
            if full.any():
                words.append(x[full].astype("<u2"))  # the low 16 bits
                x = np.where(full, x >> np.uint64(16), x)
            whole, rest = np.divmod(x, frequency)
            state[:len(part)] = (whole << np.uint64(TOTAL_BITS)) + rest + self.cumulative[part]
        return np.concatenate([part.view(np.uint8) for part in (state.astype("<u4"), *reversed(words))])

    def decode(self, stream: np.ndarray, models: np.ndarray) -> np.ndarray:
        """int64 symbols (n,) of ``models`` (n,) from ``stream`` uint8; FormatError where it is not the stream of so many symbols."""
        data, models = np.ascontiguousarray(stream, np.uint8), np.asarray(models, np.int64)
        count = len(models)
        lanes = _lanes(count)
        if len(data) < 4 * lanes or len(data) % 2:
            raise FormatError("truncated", f"an entropy-coded stream of {count} symbols has {len(data)} bytes; "
                                           f"{4 * lanes} and whole words are needed")
        state = data[:4 * lanes].view("<u4").astype(np.uint64)
        words = data[4 * lanes:].view("<u2").astype(np.uint64)
        if (state < TOTAL).any():
            raise FormatError("value", "an entropy-coded stream starts with an impossible state")
        out, read = np.empty(count, np.int64), 0
        for begin in range(0, count, lanes):
            model = models[begin:begin + lanes]
            x = state[:len(model)]
            slot = x & np.uint64(TOTAL - 1)
            place = np.searchsorted(self.starts, model * TOTAL + slot.astype(np.int64), side="right") - 1
            out[begin:begin + lanes] = place - self.first[model]
            x = self.frequency[place] * (x >> np.uint64(TOTAL_BITS)) + slot - self.cumulative[place]
            empty = x < TOTAL
            need = int(np.count_nonzero(empty))
            if need:
                if read + need > len(words):
                    raise FormatError("truncated", f"an entropy-coded stream ends before symbol {begin + lanes} of {count}")
                x[empty] = (x[empty] << np.uint64(16)) | words[read:read + need]
                read += need
            state[:len(model)] = x
        if read != len(words) or (state != TOTAL).any():
            raise FormatError("value", f"an entropy-coded stream does not end after {count} symbols; it is damaged or of other tables")
        return out

    def _place(self, symbols: np.ndarray, models: np.ndarray) -> np.ndarray:
        symbols, models = np.asarray(symbols, np.int64), np.asarray(models, np.int64)
        if symbols.shape != models.shape or symbols.ndim != 1:
            raise CodewordError(f"rans got {symbols.shape} symbols and {models.shape} models; one model a symbol is needed")
        if symbols.size and (models.min() < 0 or models.max() >= len(self.sizes)):
            raise CodewordError(f"rans got models {models.min()}..{models.max()}; there are {len(self.sizes)}")
        if ((symbols < 0) | (symbols >= self.sizes[models])).any():
            raise CodewordError("rans got a symbol outside its table")
        return self.first[models] + symbols


def _lanes(symbols: int) -> int:
    return min(MOST_LANES, max(1, symbols // SYMBOLS_PER_LANE))
