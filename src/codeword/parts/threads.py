"""torch on one CPU thread, for sums and factorisations that decide codes or codebooks.

A matrix product, a sum over an axis or a factorisation in torch adds in an order that changes with the number of threads, and so
does its last bit. ``ops`` is exact on any number; where torch's own routine is used instead, it runs in here.

The number that ``torch.set_num_threads`` sets is the calling Python thread's own, and also what threads that have not used torch yet
will start with. So every thread gives its own number back, and one that first meets torch while another is in here, and so
starts with one, gets the number of the first to enter instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Depth(threading.local):
    value = 0


_lock = threading.Lock()
_mine = _Depth()
_inside = 0
_first = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one CPU thread inside; the caller's number afterwards. May be nested, and entered from many Python threads at once."""
    global _inside, _first
    if _mine.value:
        yield
        return
    with _lock:
        before = torch.get_num_threads()
        if _inside == 0:
            _first = before
        elif before == 1:
            before = _first
        _inside += 1
        _mine.value = 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            _mine.value = 0
            torch.set_num_threads(before)
