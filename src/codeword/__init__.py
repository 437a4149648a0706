"""codeword: vectors into codes, and codes made useful. Public names are imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "CodewordError": "errors", "FormatError": "errors", "NotFitted": "errors", "ShapeError": "errors", "Unsupported": "errors",
    "Codes": "quantizer", "Quantized": "quantizer", "Quantizer": "quantizer",
    "make": "catalog", "AutoUpdate": "parts.auto_update",
    "VQ": "quantizers.vq", "PQ": "quantizers.pq", "OPQ": "quantizers.opq", "PVQ": "quantizers.pvq", "GainShape": "quantizers.gain_shape",
    "LFQ": "quantizers.lfq", "BSQ": "quantizers.bsq", "GroupRVQ": "quantizers.group_rvq", "MaskedRVQ": "quantizers.masked_rvq",
    "GumbelPQ": "quantizers.gumbel_pq", "MultiScale": "quantizers.multi_scale",
    "FSQ": "quantizers.fsq", "SimVQ": "quantizers.simvq", "Rotated": "quantizers.rotated", "Product": "quantizers.product",
    "Residual": "quantizers.residual", "Projected": "quantizers.projected", "Affine": "quantizers.affine",
    "RaBitQ": "quantizers.rabitq", "PlainRaBitQ": "quantizers.plain_rabitq", "Half": "quantizers.half",
    "SAQ": "quantizers.saq", "CAQ": "quantizers.caq", "RVQ": "quantizers.rvq", "AQ": "quantizers.aq",
    "LVQ": "quantizers.lvq", "ScalarQuantizer": "quantizers.scalar", "ECSQ": "quantizers.ecsq", "E8": "quantizers.e8",
    "CosineVQ": "quantizers.cosine_vq", "FactorizedVQ": "quantizers.factorized_vq",
    "BridgeVQ": "quantizers.bridge_vq", "ProjectedVQ": "quantizers.projected_vq",
    "Index": "search.index", "load": "io.objects", "ImageTokenizer": "tokenizers.image", "Tokens": "tokenizers.tokens",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"codeword.{_NAMES[name]}"), name)
    if name == "compat":
        return importlib.import_module("codeword.compat")
    raise AttributeError(f"module 'codeword' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
