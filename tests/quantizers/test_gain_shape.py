"""GainShape: the gain is the least-squares one, its bits are counted, and any quantizer comes back to the input's space."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codeword import VQ, CodewordError, GainShape, make
from codeword.parts import random
from codeword.parts.rows import dot, unit
from codeword.quantizer import Quantizer


def _rows(n: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    x = torch.from_numpy(random.normal(seed, n * dim, stream="test gain shape")).reshape(n, dim)
    lengths = torch.from_numpy(np.exp(random.normal(seed + 1, n, stream="lengths")))
    return x * lengths.unsqueeze(1)


class Signs(Quantizer):
    """The plainest direction code: one sign an entry; decodes to +-1, which is not the input's space."""

    learns = False

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.dim, self.levels = dim, (2,) * dim

    def _encode(self, rows, metric):
        return (rows >= 0).to(torch.int64), None

    def _decode(self, indices, side):
        return 2.0 * indices - 1.0


class WithFloat(Signs):
    """The same with a float16 beside it."""

    side_count, side_dtype = 1, torch.float16

    def _encode(self, rows, metric):
        return super()._encode(rows, metric)[0], rows.abs().amax(1, keepdim=True)

    def _decode(self, indices, side):
        return super()._decode(indices, None) * side.float()


def test_dot_is_exact_in_its_order_and_unit_has_length_one() -> None:
    x, y = _rows(50, 13), _rows(50, 13, seed=3)
    torch.testing.assert_close(dot(x, y), (x.double() * y.double()).sum(1), rtol=1e-13, atol=1e-13)
    assert torch.equal(dot(x, y)[7], dot(x[7], y[7]))
    directions, usable = unit(x)
    assert bool(usable.all())
    torch.testing.assert_close(dot(directions, directions), torch.ones(50, dtype=torch.float64), rtol=1e-15, atol=1e-15)
    odd = torch.tensor([[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 0.0], [3e38, 3e38], [1e-45, 0.0]])
    directions, usable = unit(odd)
    assert usable.tolist() == [False, False, False, True, True] and bool(torch.isfinite(directions).all())
    assert directions[:3].tolist() == [[1.0, 0.0]] * 3


@pytest.mark.parametrize("inner", [Signs, WithFloat])
@pytest.mark.parametrize("gain_bits", [0, 1, 6, 12, 16, 32])
def test_decode_is_the_best_multiple_of_the_direction(inner: type[Quantizer], gain_bits: int) -> None:
    x = _rows(200)
    quantizer = GainShape(quantizer=inner(dim=8), gain_bits=gain_bits).fit(x)
    values = quantizer.decode(quantizer.encode(x))
    signs = torch.where(x >= 0, 1.0, -1.0).double() / 8**0.5
    best = (x.double() * signs).sum(1)
    gain = (values.double() * signs).sum(1)
    torch.testing.assert_close(values.double(), gain.unsqueeze(1) * signs, rtol=1e-6, atol=1e-9)
    if gain_bits >= 16:
        torch.testing.assert_close(gain, best, rtol=2.0**-11 if gain_bits == 16 else 1e-6, atol=0)
    else:
        level = quantizer.gains.double()
        nearest = level[(best.unsqueeze(1) - level).abs().argmin(1)]
        torch.testing.assert_close(gain, nearest, rtol=1e-6, atol=1e-9)


def test_bits_are_counted_whatever_the_gain_is_stored_in() -> None:
    x = _rows(64)
    for inner, own in ((Signs, 8), (WithFloat, 8 + 16)):
        for gain_bits in (0, 1, 8, 16):
            quantizer = GainShape(quantizer=inner(dim=8), gain_bits=gain_bits).fit(x)
            assert quantizer.nominal_bits * 8 == own + gain_bits, (inner, gain_bits)
    # Two kinds of float side by side are stored in the wider one, and counted so.
    assert GainShape(quantizer=WithFloat(dim=8), gain_bits=32).nominal_bits * 8 == 8 + 2 * 32
    assert GainShape(quantizer=Signs(dim=8), gain_bits=8).fit(x).shared_bytes == 4 * 256


def test_error_falls_with_gain_bits() -> None:
    x = _rows(400)
    errors = []
    for gain_bits in (0, 1, 2, 4, 8, 32):
        quantizer = GainShape(quantizer=Signs(dim=8), gain_bits=gain_bits).fit(x)
        errors.append(float((quantizer.decode(quantizer.encode(x)) - x).double().square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.5 * errors[-1]
    shape_error = x.double().square().sum(1) - (x.double().abs().sum(1) / 8**0.5).square()  # |x|^2 - s^2
    assert errors[-1] == pytest.approx(float(shape_error.mean()) / 8, rel=1e-6)


def test_it_maps_back_what_decodes_elsewhere() -> None:
    x = _rows(300)
    bare = Signs(dim=8)
    wrapped = GainShape(quantizer=bare, gain_bits=8).fit(x)
    assert wrapped.input_space
    error = [float((q.decode(q.encode(x)) - x).square().mean()) for q in (bare, wrapped)]
    assert error[1] < 0.5 * float(x.square().mean()) and error[1] < 0.5 * error[0]
    fsq = make("gain_shape(fsq:bits=2):gain_bits=8", 8).fit(x)
    assert fsq.input_space and float((fsq.decode(fsq.encode(x)) - x).square().mean()) < 0.4 * float(x.square().mean())


def test_scale_of_a_row_moves_only_its_gain() -> None:
    x = _rows(50)
    quantizer = GainShape(quantizer=VQ(dim=8, codebook_size=16, iterations=5), gain_bits=32).fit(x)
    small, large = quantizer.encode(x), quantizer.encode(x * 4)
    assert torch.equal(small.indices, large.indices) and torch.equal(small.side * 4, large.side)


def test_unit_rows_need_no_gain_bits() -> None:
    x = unit(_rows(300))[0].float()
    error = []
    for gain_bits in (0, 8):
        quantizer = GainShape(quantizer=VQ(dim=8, codebook_size=32, iterations=8), gain_bits=gain_bits).fit(x)
        error.append(float((quantizer.decode(quantizer.encode(x)) - x).square().mean()))
    assert error[0] < 1.15 * error[1]


def test_rows_of_zeros_do_not_disturb_the_directions() -> None:
    x = _rows(100)
    mixed = torch.cat([x[:50], torch.zeros(20, 8), x[50:]])
    plain = GainShape(quantizer=VQ(dim=8, codebook_size=8, iterations=5), gain_bits=32).fit(x)
    disturbed = GainShape(quantizer=VQ(dim=8, codebook_size=8, iterations=5), gain_bits=32).fit(mixed)
    assert torch.equal(plain.quantizer.codebook, disturbed.quantizer.codebook)
    assert bool((disturbed.decode(disturbed.encode(torch.zeros(2, 8))) == 0).all())


def test_training_passes_the_inner_loss_and_updates_the_inner_codebook() -> None:
    x = _rows(64).requires_grad_()
    quantizer = GainShape(quantizer=VQ(dim=8, codebook_size=8, iterations=3), gain_bits=4).fit(x.detach()).train()
    out = quantizer(x)
    (out.values.square().sum() + out.loss).backward()
    assert out.loss > 0 and quantizer.quantizer.codebook.grad is not None and bool((quantizer.quantizer.codebook.grad != 0).any())
    averaged = GainShape(quantizer=VQ(dim=8, codebook_size=8, iterations=3, learning="ema"), gain_bits=4).fit(x.detach()).train()
    before = averaged.quantizer.codebook.clone()
    averaged.update(averaged(_rows(64, seed=5)))
    assert not torch.equal(averaged.quantizer.codebook, before)


def test_gains_far_beyond_the_fitted_ones_saturate() -> None:
    quantizer = GainShape(quantizer=Signs(dim=8), gain_bits=16).fit(_rows(100))
    codes = quantizer.encode(torch.full((1, 8), 1e30))
    assert bool(torch.isfinite(codes.side).all()) and bool(torch.isfinite(quantizer.decode(codes)).all())


@pytest.mark.parametrize("gain_bits", [-1, 13, 15, 17, 64])
def test_other_gain_bits_are_refused(gain_bits: int) -> None:
    with pytest.raises(CodewordError, match="gain_bits"):
        GainShape(quantizer=Signs(dim=8), gain_bits=gain_bits)


def test_spec_strings() -> None:
    quantizer = make("gain_shape(pq:num_codebooks=2,codebook_size=4):gain_bits=3", 8)
    assert isinstance(quantizer, GainShape) and quantizer.levels == (4, 4, 8)
    for spec in ("gain_shape", "gain_shape(pq:bits=2;pq:bits=2)", "gain_shape(pq:bits=2):colour=1"):
        with pytest.raises(CodewordError):
            make(spec, 8)
