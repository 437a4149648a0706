"""What the generic checks are asked of: a tiny instance of every catalog entry, built from its ``example_spec``."""

from __future__ import annotations

import copy
import functools
import json
import zlib
from typing import Any, NamedTuple

import numpy as np
import torch

from codeword import catalog
from codeword.parts import random
from codeword.quantizer import Codes, Quantizer

ROWS = 96


VARIANTS = {
    "vq": {"averages": "vq:codebook_size=12,iterations=3,learning=ema",
           "soft": "vq:codebook_size=12,iterations=3,estimator=ibq,penalties=diversity:0.1+active_orthogonality:0.1,revival=0.1"},
    "rvq": {"averages": "rvq:num_codebooks=3,codebook_size=4,iterations=3,beam=1,learning=ema,estimator=rotation"},
    "pq": {"averages": "pq:num_codebooks=4,codebook_size=4,iterations=3,learning=ema,estimator=diveq_detached"},
    "simvq": {"rotation": "simvq:codebook_size=12,steps=5,batch_size=32,estimator=rotation"},
}
"""Further ways of training an entry, of its example's width: asked what its example is asked."""


class Subject(NamedTuple):
    """One catalog entry under test, or one variant of it."""

    name: str
    variant: str = ""

    @property
    def entry(self) -> catalog.Entry:
        return catalog.entry(self.name)

    @property
    def spec(self) -> str:
        return VARIANTS[self.name][self.variant] if self.variant else self.entry.example_spec

    @property
    def dim(self) -> int:
        return self.entry.example_dim

    def new(self) -> Quantizer:
        """A fresh, unfitted instance."""
        return catalog.make(self.spec, self.dim)

    def fitted(self) -> Quantizer:
        """A copy of an instance fitted on ``rows()``, in eval mode."""
        return copy.deepcopy(_fitted(self))

    def rows(self, n: int = ROWS, seed: int = 0) -> np.ndarray:
        """float32 (n, dim): normal rows with unequal variances and a mean."""
        values = random.normal(1000 + seed, n * self.dim, stream="contract rows").reshape(n, self.dim)
        return (values * np.linspace(0.5, 1.5, self.dim, dtype=np.float32) + np.float32(0.25)).astype(np.float32)

    def tensor(self, n: int = ROWS, seed: int = 0) -> torch.Tensor:
        return torch.from_numpy(self.rows(n, seed))


@functools.cache
def _fitted(subject: Subject) -> Quantizer:
    return subject.new().fit(subject.rows()).eval()


def state(quantizer: Quantizer) -> dict[str, Any]:
    """Everything that a file would hold, comparable with ==."""
    tensors = {key: (str(t.dtype), tuple(t.shape), t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
               for key, t in quantizer.state_dict().items()}
    return {"config": plain(quantizer.config), "structure": json.dumps(quantizer.structure, sort_keys=True), "tensors": tensors}


def plain(config: Any) -> Any:
    """A configuration with every Quantizer in it replaced by (class name, its own configuration)."""
    if isinstance(config, Quantizer):
        return {"class": type(config).__name__, "config": plain(config.config)}
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [plain(value) for value in config]
    return config


def same(a: Codes, b: Codes) -> bool:
    """Equal codes, bit for bit, dtypes and shapes included."""
    return all((p is None) == (q is None) and (p is None or _bytes(p) == _bytes(q)) for p, q in zip(a, b, strict=True))


def _bytes(part: Any) -> tuple[str, tuple[int, ...], bytes]:
    array = part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else np.asarray(part)
    return str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes()


def take(codes: Codes, index: Any) -> Codes:
    """Codes of some rows."""
    return Codes(*(None if part is None else part[index] for part in codes))


def join(parts: list[Codes]) -> Codes:
    """Codes of several runs, one after the other."""
    return Codes(*(None if column[0] is None else np.concatenate(column) if isinstance(column[0], np.ndarray) else torch.cat(column)
                   for column in zip(*parts, strict=True)))


def generator_states() -> tuple[int, int, int]:
    """A digest of every global random generator."""
    import random as python_random
    return (zlib.crc32(torch.get_rng_state().numpy().tobytes()), zlib.crc32(repr(np.random.get_state()).encode()),
            zlib.crc32(repr(python_random.getstate()).encode()))
