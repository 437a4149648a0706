"""Quantizers trained elsewhere, as ours: the same indices and values from the same weights."""

from __future__ import annotations

from codeword.compat.convert import KINDS, Imported, convert, from_vector_quantize_pytorch, load

__all__ = ["KINDS", "Imported", "convert", "from_vector_quantize_pytorch", "load"]
