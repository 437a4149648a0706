"""``bake``: a codebook that was made of something else becomes a plain one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codeword import catalog
from codeword.quantizer import Quantizer


@torch.no_grad()
def plain_vq(codebook: Tensor, *, commitment: float, seed: int) -> Quantizer:
    """A fitted ``VQ`` with a copy of ``codebook`` float32 (K, d): the codes and values of any quantizer that searches these rows by L2
    and decodes to them."""
    plain: Any = catalog.quantizer_class("vq")
    vq = plain(dim=codebook.shape[1], codebook_size=codebook.shape[0], commitment=commitment, seed=seed).to(codebook.device)
    vq.codebook.copy_(codebook)
    vq.upkeep.start(vq.codebook)
    vq.restore({"fitted": True})
    return vq
