"""SimVQ: one linear map over a frozen random codebook moves every codeword at every step (Zhu et al., ICCV 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from codeword import ops
from codeword.claims.record import Check, Claim, Rule, Setting
from codeword.parts import random
from codeword.quantizers.simvq import SimVQ
from codeword.quantizers.vq import VQ

STEP = 0.5
SIZE = {"smoke": 64, "small": 512, "paper": 2048}


def _one_step(setting: Setting) -> tuple[SimVQ, Tensor, Tensor, Tensor]:
    """One SGD step on the codebook term of one row: (quantizer, effective codebook before, after, predicted move)."""
    quantizer = SimVQ(dim=32, codebook_size=200, seed=setting.seed)
    row = torch.from_numpy(random.normal(setting.seed, 32, stream="claim row")).reshape(1, 32)
    before = quantizer.effective().detach()
    winner = int(ops.nearest(row, before).indices)
    loss = (quantizer.effective()[winner] - row[0]).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in (quantizer.weight, quantizer.bias):
            assert parameter.grad is not None
            parameter -= STEP * parameter.grad
    products = (quantizer.basis.double() @ quantizer.basis[winner].double()) + 1
    predicted = -(2 * STEP / 32) * products.unsqueeze(1) * (before[winner] - row[0]).double()
    return quantizer, before, quantizer.effective().detach(), predicted


def step_formula(setting: Setting) -> float:
    _, before, after, predicted = _one_step(setting)
    return float(((after - before).double() - predicted).abs().max() / predicted.abs().max())


def moved(setting: Setting) -> float:
    _, before, after, _ = _one_step(setting)
    return float((after != before).any(1).float().mean())


def frozen(setting: Setting) -> float:
    quantizer, *_ = _one_step(setting)
    untouched = SimVQ(dim=32, codebook_size=200, seed=setting.seed).basis
    return float((quantizer.basis - untouched).abs().max())


def baked(setting: Setting) -> float:
    """Share of rows whose code or value changes when the codebook is baked into a plain VQ."""
    quantizer = SimVQ(dim=setting.train.shape[1], codebook_size=64, steps=20, seed=setting.seed).fit(setting.train[:512])
    plain = quantizer.bake()
    ours, theirs = quantizer.encode(setting.test), plain.encode(setting.test)
    same = (ours.indices == theirs.indices).all(1) & (quantizer.decode(ours) == plain.decode(theirs)).all(1)
    return float((~same).float().mean())


def _errors(setting: Setting) -> tuple[float, float, float]:
    """Held-out squared error of k-means, SimVQ and the frozen codebook alone, in units where SimVQ trains (mean 0, length 1)."""
    mean = setting.train.mean(0)
    length = (setting.train - mean).square().sum(1).mean().sqrt()
    train, test = (setting.train - mean) / length, (setting.test - mean) / length
    size = SIZE[setting.budget]

    def error(codebook: Tensor) -> float:
        return float(ops.nearest(test, codebook).distances.mean())

    fitted = SimVQ(dim=train.shape[1], codebook_size=size, seed=setting.seed).fit(train)
    plain = VQ(dim=train.shape[1], codebook_size=size, seed=setting.seed).fit(train)
    return error(plain.codebook.detach()), error(fitted.effective().detach()), error(fitted.basis)


def above_kmeans(setting: Setting) -> float:
    floor, ours, _ = _errors(setting)
    return ours / floor


def below_frozen(setting: Setting) -> float:
    _, ours, untrained = _errors(setting)
    return ours / untrained


CLAIM = Claim(
    name="simvq",
    sentence="Reparameterising a frozen codebook by one linear layer moves every codeword at every step, which keeps 100 % of 65,536 "
             "codes in use where a plain codebook keeps 1.4 % (ImageNet 128 x 128, rFID 2.24 against 3.74).",
    checks=(
        Check("step_formula", "identity", "one SGD step moves every effective codeword by -(2 eta/(N d)) (<c_k, c_j> + 1)(c^_j - x): "
              "largest deviation over largest move", Rule(high=1e-3), step_formula, needs_data=False),
        Check("every_codeword_moves", "identity", "share of effective codewords moved by one step on one row",
              Rule(1.0, 1.0), moved, needs_data=False),
        Check("basis_frozen", "identity", "largest change of the random codebook itself", Rule(0.0, 0.0), frozen, needs_data=False),
        Check("baked_is_equal", "identity", "share of held-out rows whose code or value differs after baking", Rule(0.0, 0.0), baked),
        Check("above_kmeans", "relation", "held-out error of SimVQ over k-means on fixed vectors (k-means is the floor)",
              Rule(low=1.0), above_kmeans),
        Check("below_frozen", "relation", "held-out error of SimVQ over its frozen random codebook (the linear layer does the work)",
              Rule(high=0.9), below_frozen),
    ),
    notes="Usage and reconstruction at 65,536 codes need a trained image tokenizer and are not re-checked yet; the relations here are "
          "the card's network-free ones, on sentence embeddings.",
)
