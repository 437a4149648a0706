"""What the quantizers with other sources of codewords have in common: every estimator, masks, counts of a data set in use."""

from __future__ import annotations

import pytest
import torch

import codeword
from codeword.parts import gradients
from codeword.quantizer import Quantizer

SPECS = {
    "cosine_vq": "cosine_vq:codebook_size=16,iterations=4",
    "factorized_vq": "factorized_vq:codebook_size=8,iterations=4,entropy=0.0,disentangle=0.0",
    "bridge_vq": "bridge_vq:codebook_size=16,group=4,width=8,steps=10",
    "projected_vq": "projected_vq:codebook_size=16,steps=10",
}


def fitted(name: str, estimator: str) -> tuple[Quantizer, torch.Tensor]:
    x = torch.randn(80, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    return codeword.make(f"{SPECS[name]},estimator={estimator}", 8).fit(x), x


@pytest.mark.parametrize("estimator", gradients.PAIRS)
@pytest.mark.parametrize("name", SPECS)
def test_every_estimator_keeps_its_promise(name: str, estimator: str) -> None:
    """In eval mode the value is the codeword bit for bit; the encoder gets a gradient; codewords get that of the task where the estimator
    leads it there, and a loss of their own where it does not."""
    quantizer, x = fitted(name, estimator)
    assert torch.equal(quantizer.eval()(x).values, quantizer.decode(quantizer.encode(x)))
    torch.manual_seed(0)
    g = torch.randn(80, 8)
    for what in ("task", "loss"):
        quantizer.train().zero_grad()
        rows = x.clone().requires_grad_()
        out = quantizer(rows)
        ((out.values * g).sum() if what == "task" else out.loss).backward()
        assert rows.grad is not None and bool(torch.isfinite(rows.grad).all()) and bool((rows.grad != 0).any())
        moved = any(p.grad is not None and bool((p.grad != 0).any()) for p in quantizer.parameters())
        leads = not gradients.needs_codebook_term(estimator)
        assert moved == (leads if what == "task" else not leads), what


@pytest.mark.parametrize("name", SPECS)
def test_the_estimator_is_saved_and_does_not_change_codes(name: str, tmp_path) -> None:
    (plain, x), (other, _) = fitted(name, "straight_through"), fitted(name, "diveq")
    other.save(tmp_path / "q.cw")
    loaded = codeword.load(tmp_path / "q.cw")
    assert loaded.config["estimator"] == "diveq"
    assert torch.equal(torch.as_tensor(loaded.encode(x).indices), torch.as_tensor(plain.encode(x).indices))
