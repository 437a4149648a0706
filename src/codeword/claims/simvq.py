"""SimVQ: one linear map over a frozen random codebook moves every codeword at every step (Zhu et al., ICCV 2025)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from codeword import ops
from codeword.claims import autoencoder
from codeword.claims.record import Check, Claim, Rule, Setting
from codeword.parts import random
from codeword.quantizers.simvq import SimVQ
from codeword.quantizers.vq import VQ

STEP = 0.5
SIZE = {"smoke": 32, "small": 256, "paper": 2048}
"""Codewords of the fits on vectors."""
IMAGE_SIZE = {"smoke": 64, "small": 4096, "paper": 65_536}
"""Codewords of the tokenizers."""


def _one_step(setting: Setting) -> tuple[SimVQ, Tensor, Tensor, Tensor]:
    """One SGD step on the quantizer's own loss of one row: (quantizer, effective codebook before, after, predicted move). The
    commitment term has no gradient in W and b."""
    rows = torch.from_numpy(random.normal(setting.seed, 64 * 32, stream="claim rows")).reshape(64, 32)
    quantizer, row = SimVQ(dim=32, codebook_size=200, steps=0, seed=setting.seed).fit(rows), rows[:1]
    before = quantizer.effective().detach()
    winner = int(ops.nearest(row, before).indices)
    quantizer(row).loss.backward()
    torch.optim.SGD(quantizer.parameters(), lr=STEP).step()
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
    """After 20 steps of its own training the codebook must still be the numbers that the seed gives."""
    rows = setting.train[:512]
    quantizer = SimVQ(dim=rows.shape[1], codebook_size=64, steps=20, seed=setting.seed).fit(rows)
    drawn = random.normal(setting.seed, quantizer.basis.numel(), stream="simvq basis") * np.float32(1 / math.sqrt(rows.shape[1]))
    return float((quantizer.basis.flatten() - torch.from_numpy(drawn)).abs().max())


def baked(setting: Setting) -> float:
    """Share of rows whose code or value changes when the codebook is baked into a plain VQ."""
    quantizer = SimVQ(dim=setting.train.shape[1], codebook_size=64, steps=20, seed=setting.seed).fit(setting.train[:512])
    plain = quantizer.bake()
    ours, theirs = quantizer.encode(setting.test), plain.encode(setting.test)
    codes = torch.as_tensor(ours.indices).ne(torch.as_tensor(theirs.indices)).any(1)
    values = torch.as_tensor(quantizer.decode(ours)).ne(torch.as_tensor(plain.decode(theirs))).any(1)
    return float((codes | values).float().mean())


def _error(rows: Tensor, codebook: Tensor) -> float:
    return float(ops.nearest(rows, codebook).distances.double().mean())


def _fitted(setting: Setting) -> tuple[Tensor, SimVQ]:
    """Training rows in the units where SimVQ trains (mean 0, mean squared length 1), and SimVQ fitted on them."""
    rows = setting.train - setting.train.mean(0)
    rows = rows / rows.square().sum(1).mean().sqrt()
    return rows, SimVQ(dim=rows.shape[1], codebook_size=SIZE[setting.budget], seed=setting.seed).fit(rows)


def above_kmeans(setting: Setting) -> float:
    rows, ours = _fitted(setting)
    floor = VQ(dim=rows.shape[1], codebook_size=SIZE[setting.budget], seed=setting.seed).fit(rows)
    return _error(rows, ours.effective().detach()) / _error(rows, floor.codebook.detach())


def below_frozen(setting: Setting) -> float:
    rows, ours = _fitted(setting)
    return _error(rows, ours.effective().detach()) / _error(rows, ours.basis)


def _tokenizers(setting: Setting) -> tuple[autoencoder.Arm, autoencoder.Arm]:
    """SimVQ's, and that of a plain codebook: U(+-1/K), no k-means, no revival."""
    size = IMAGE_SIZE[setting.budget]
    return (autoencoder.arm(setting, f"simvq:codebook_size={size}"),
            autoencoder.arm(setting, f"vq:codebook_size={size},revival=0", start="random"))


def usage_on_images(setting: Setting) -> float:
    ours, plain = _tokenizers(setting)
    return ours.usage / plain.usage


def error_on_images(setting: Setting) -> float:
    ours, plain = _tokenizers(setting)
    return ours.error / plain.error


CLAIM = Claim(
    name="simvq",
    sentence="Reparameterising a frozen codebook by one linear layer moves every codeword at every step, which keeps 100 % of 65,536 "
             "codes in use where a plain codebook keeps 1.4 % (ImageNet 128 x 128, rFID 2.24 against 3.74).",
    checks=(
        Check("step_formula", "identity", "one SGD step moves every effective codeword by -(2 eta/(N d)) (<c_k, c_j> + 1)(c^_j - x): "
              "largest deviation over largest move", Rule(high=1e-3), step_formula, needs_data=False),
        Check("every_codeword_moves", "identity", "share of effective codewords moved by one step on one row",
              Rule(1.0, 1.0), moved, needs_data=False),
        Check("basis_frozen", "identity", "largest change of the random codebook itself", Rule(0.0, 0.0), frozen),
        Check("baked_is_equal", "identity", "share of held-out rows whose code or value differs after baking", Rule(0.0, 0.0), baked),
        Check("above_kmeans", "relation", "error of SimVQ over k-means on the vectors both were fitted on (k-means is the floor)",
              Rule(low=1.0), above_kmeans),
        Check("below_frozen", "relation", "the same over its frozen random codebook (the linear layer does the work)",
              Rule(high=0.9), below_frozen),
        Check("usage_on_images", "relation", "codewords in use on held-out images, image tokenizer of 4,096 codewords, over a plain "
              "codebook's from U(+-1/K)", Rule(low=5.0), usage_on_images, on="images"),
        Check("error_on_images", "relation", "held-out reconstruction error of the same, over the plain codebook's", Rule(high=1.0),
              error_on_images, on="images"),
    ),
    notes="The tokenizers are small convolutional ones, trained for 1,000 steps on 28 x 28 images (7 x 7 tokens); the other relations "
          "are network-free ones, on sentence embeddings. above_kmeans was first measured on held-out rows, where a trial at the "
          "smallest budget was inconclusive; k-means is a floor only on the rows it was fitted on, so it is measured there now.",
)
