"""Which quantizer fits in which place, read off what each declares, never typed in; ``tests/places`` runs every cell for real.

Search asks for Scannable, else codes are decoded block by block; weights and caches ask for ``takes_metric``, else plain L2; a network
asks for a gradient or codebook of the quantizer's own, else its codewords stay fixed. A quantizer whose decode leaves the input's
space (``input_space``) is refused with Unsupported outside of networks, until something maps it back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

from codeword import catalog
from codeword.quantizer import Quantizer, Scannable

WRAP = "wrap"


class Place(NamedTuple):
    """A name and what a quantizer does there."""

    name: str
    cell: Callable[[Quantizer], str]


def matrix() -> dict[str, Any]:
    """``places``: their names; ``rows``: for each quantizer of the catalog one cell a place; ``notes``: what the words mean."""
    rows = {name: [place.cell(quantizer) for place in PLACES] for name, quantizer in examples()}
    notes = [
        "fused: distances straight from codes.  decoded: codes are decoded block by block.",
        "metric: the choice honours the right quadratic form (KV: for keys).  l2: it minimises plain error, and the report says so.",
        "trains: the codebook moves or the gradient is its own.  fixed: codewords stay as fitted; straight-through, commitment loss.",
        "compile: one graph without breaks.  ranks: the same codebooks on all ranks after training; none: no codebook moves.",
        "wrap: decode leaves the input's space; the place raises Unsupported, and takes projected(...) around it.",
    ]
    return {"places": [place.name for place in PLACES], "rows": rows, "notes": notes}


def examples() -> Iterator[tuple[str, Quantizer]]:
    """Each catalog entry's small example, unfitted, under its spec without options: what a combinator can do depends on its parts."""
    for entry in catalog.QUANTIZERS:
        spec = entry.example or (f"{entry.name}(pq:bits=2)" if entry.combinator else f"{entry.name}:bits=2")
        yield re.sub(r":[^;()]*", "", spec), catalog.make(spec, entry.example_dim)


def trains(quantizer: Quantizer) -> bool:
    """Whether forward does more than pass straight through fixed codewords."""
    return any(type(leaf)._forward is not Quantizer._forward for leaf in leaves(quantizer))


def moves(quantizer: Quantizer) -> bool:
    """Whether training changes the quantizer's own state."""
    return any(p.requires_grad for p in quantizer.parameters()) or any(
        type(leaf).update is not Quantizer.update for leaf in leaves(quantizer))


def leaves(module: nn.Module) -> list[Quantizer]:
    """The quantizers that combinators are made of in the end."""
    found = [leaf for child in module.children() for leaf in leaves(child)]
    return found or ([module] if isinstance(module, Quantizer) else [])


def _search(quantizer: Quantizer) -> str:
    return WRAP if not quantizer.input_space else "fused" if isinstance(quantizer, Scannable) else "decoded"


def _weights(quantizer: Quantizer) -> str:
    return WRAP if not quantizer.input_space else "metric" if quantizer.takes_metric else "l2"


def _cache(quantizer: Quantizer) -> str:
    return WRAP if not quantizer.input_space else "metric" if quantizer.takes_metric else "decoded"


PLACES: tuple[Place, ...] = (
    Place("flat", _search),
    Place("lists", _search),
    Place("GPTQ", _weights),
    Place("KV", _cache),
    Place("network", lambda quantizer: "trains" if trains(quantizer) else "fixed"),
    Place("compile", lambda quantizer: "yes"),
    Place("ranks", lambda quantizer: "same" if moves(quantizer) else "none"),
)
