"""The column loop: identities against the textbook forms, the paper's relation on a real layer, repair, refusal, bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import codeword
from codeword import PQ, VQ, CodewordError, ShapeError, Unsupported
from codeword.compress.hessian import Hessian, factor, proxy_loss
from codeword.compress.weights.columns import compress_linear, quantize_weight
from codeword.quantizer import Quantizer


def correlated(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights and a strongly correlated second moment."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(512, columns, generator=g) @ torch.randn(columns, columns, generator=g)
    h = Hessian(columns)
    h.update(x)
    return torch.randn(rows, columns, generator=g), h.value


def inverse_factor(h: Tensor, damping: float) -> Tensor:
    """U of the literature: H^-1 = U'U."""
    damped = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    return torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)


def textbook_gptq(w: Tensor, h: Tensor, quantizer: Quantizer, lazy: int, damping: float = 0.01) -> Tensor:
    """Steps 4 and 6 of GPTQ word for word, v columns at a time, in lazy batches of ``lazy`` columns, float64."""
    u, v = inverse_factor(h, damping), quantizer.dim
    w, result = w.double().clone(), torch.zeros_like(w)
    for start in range(0, w.shape[1], lazy):
        stop = min(start + lazy, w.shape[1])
        errors = torch.zeros(len(w), stop - start, dtype=torch.float64)
        for i in range(start, stop, v):
            inner = u[i:i + v, i:i + v]
            metric = torch.linalg.inv(inner.mT @ inner) if quantizer.takes_metric else None
            q = quantizer.decode(quantizer.encode(w[:, i:i + v].float(), metric=metric))
            result[:, i:i + v] = q
            e = (w[:, i:i + v] - q) @ torch.linalg.inv(inner)
            w[:, i + v:stop] -= e @ u[i:i + v, i + v:stop]
            errors[:, i - start:i - start + v] = e
        w[:, stop:] -= errors @ u[start:stop, stop:]
    return result


def textbook_ldlq(w: Tensor, h: Tensor, quantizer: Quantizer, damping: float = 0.01) -> Tensor:
    """QuIP's form: H = L D L', columns from last to first."""
    damped = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    root = torch.linalg.cholesky(damped)
    unit = root / root.diagonal()
    w, result = w.double(), w.double().clone()
    for k in reversed(range(w.shape[1])):
        target = w[:, k] + (w[:, k + 1:] - result[:, k + 1:]) @ unit[k + 1:, k]
        result[:, k] = quantizer.decode(quantizer.encode(target.float().unsqueeze(1)))[:, 0]
    return result.float()


@pytest.fixture(scope="module")
def grid() -> VQ:
    """A scalar quantizer of eight levels."""
    return VQ(dim=1, codebook_size=8).fit(torch.randn(4096, 1, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("lazy", [8, 24, 48])
@pytest.mark.parametrize("dim", [1, 4])
def test_equals_textbook_gptq_for_any_lazy_batch(dim: int, lazy: int, grid: VQ):
    w, h = correlated(20, 48)
    quantizer = grid if dim == 1 else VQ(dim=4, codebook_size=64).fit(w.reshape(-1, 4))
    mine = quantize_weight(w, h, quantizer, scale="none").layer.weight
    assert torch.equal(mine, textbook_gptq(w, h, quantizer, lazy))


def test_equals_textbook_ldlq_when_columns_are_reversed(grid: VQ):
    w, h = correlated(20, 48)
    mine = quantize_weight(w, h, grid, scale="none", order=torch.arange(47, -1, -1)).layer.weight
    assert torch.equal(mine, textbook_ldlq(w, h, grid))


def test_loss_is_the_sum_over_groups():
    """tr(D H D') = |D R|^2, so what the loop minimises group by group is the proxy loss."""
    _, h = correlated(7, 12)
    upper = factor(h, damping=0.0).upper
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper @ upper.mT, h, rtol=1e-12, atol=1e-12 * float(h.abs().max()))
    u = inverse_factor(h, 0.0)
    assert torch.allclose(torch.linalg.inv(upper), u, rtol=1e-8, atol=1e-10)


def test_diagonal_hessian_is_rounding_to_nearest(grid: VQ):
    w, _ = correlated(20, 48)
    plain = quantize_weight(w, None, grid)
    assert torch.equal(plain.layer.weight, quantize_weight(w, torch.diag(torch.rand(48) + 0.1), grid).layer.weight)
    scales = plain.layer.scales.float()
    assert torch.equal(plain.layer.weight, grid.decode(grid.encode((w / scales).unsqueeze(-1)))[..., 0] * scales)
    assert "proxy_loss" not in plain.report


def test_feedback_beats_rounding_on_a_real_layer(layer):
    """The paper's relation, on calibration and on held-out text, for a scalar and for product codebooks; the metric helps further."""
    for quantizer, inputs in ((VQ(dim=1, codebook_size=4), 128), (PQ(dim=8, num_codebooks=4, codebook_size=16, iterations=8), 384)):
        w, h, other = layer.weight[:96, :inputs], layer.hessian.value[:inputs, :inputs], layer.held_out.value[:inputs, :inputs]
        feedback = quantize_weight(w, h, quantizer)
        nearest = quantize_weight(w, None, quantizer).layer.weight
        by_activation = quantize_weight(w, h, quantizer, order="activation")
        assert feedback.report["proxy_loss"] < 0.8 * proxy_loss(w, nearest, h)
        assert by_activation.report["proxy_loss"] < 0.8 * proxy_loss(w, nearest, h)
        assert proxy_loss(w, feedback.layer.weight, other) < 0.9 * proxy_loss(w, nearest, other)


REAL = {"vq:codebook_size=64,iterations=6": 4, "pq:num_codebooks=4,codebook_size=16,iterations=6": 8, "rabitq:code_bits=2": 64,
        "pvq:bits=2": 16, "e8:bits=2": 8, "projected(fsq:bits=2)": 8, "simvq:codebook_size=64,steps=60": 4}


@pytest.mark.parametrize("spec", REAL)
def test_every_quantizer_gains_from_feedback_on_a_real_layer(spec: str, layer):
    w, h = layer.weight[:64], layer.hessian.value
    quantizer = codeword.make(spec, REAL[spec])
    result = quantize_weight(w, h, quantizer, order="activation")
    nearest = quantize_weight(w, None, quantizer).layer.weight
    assert result.report["proxy_loss"] < 0.8 * proxy_loss(w, nearest, h)
    assert result.report["metric"] == ("schur" if "vq:c" in spec or spec.startswith("pq") else "l2")
    assert result.report["bits_per_weight"] > quantizer.nominal_bits


def test_metric_is_used_and_helps(layer):
    h = layer.hessian.value
    quantizer = VQ(dim=4, codebook_size=256, iterations=8)
    with_metric = quantize_weight(layer.weight[:128], h, quantizer).report
    quantizer.takes_metric = False
    without = quantize_weight(layer.weight[:128], h, quantizer).report
    assert (with_metric["metric"], without["metric"]) == ("schur", "l2")
    assert with_metric["proxy_loss"] < without["proxy_loss"]


def test_forward_uses_the_stored_codes_only(layer):
    linear = torch.nn.Linear(384, 384, bias=True)
    with torch.no_grad():
        linear.weight.copy_(layer.weight)
    result = compress_linear(linear, layer.hessian.value, PQ(dim=8, num_codebooks=4, codebook_size=16, iterations=3), order="activation")
    made = result.layer
    copy = type(made)(in_features=384, out_features=384, quantizer=PQ(**made.quantizer.config), scales=384, permuted=True, bias=True)
    copy.load_state_dict(made.state_dict())
    copy.quantizer.fitted = True
    assert torch.equal(copy.weight, made.weight)
    x = torch.randn(3, 5, 384)
    assert torch.equal(copy(x), torch.nn.functional.linear(x, made.weight, linear.bias))
    assert torch.equal(made.half().weight, copy.weight)
    assert made(x.bfloat16()).dtype == torch.bfloat16
    counted = sum(8 * t.numel() * t.element_size() for key, t in made.state_dict().items() if key != "bias") / 384**2
    assert result.report["bits_per_weight"] == pytest.approx(counted, rel=1e-12)
    assert result.report["bits"]["indices"] == 2.0


def test_padding_dead_inputs_and_scales():
    w, _ = correlated(6, 10)
    x = torch.randn(64, 10)
    x[:, 3] = 0
    h = Hessian(10)
    h.update(x)
    result = quantize_weight(w, h.value, VQ(dim=4, codebook_size=16), scale="tensor", importance=True)
    assert result.report["dead_inputs"] == 1 and result.report["padding_columns"] == 2
    assert result.layer.weight.shape == (6, 10) and result.layer.scales.shape == (1, 1)
    assert result.report["bits"]["indices"] == 8 * 9 / 60  # 18 groups of 4 bits
    zero = quantize_weight(torch.zeros(4, 8), None, VQ(dim=4, codebook_size=2))
    assert torch.equal(zero.layer.weight, torch.zeros(4, 8))


def test_singular_hessians_are_repaired_and_reported():
    few = Hessian(16)
    few.update(torch.randn(3, 16))
    assert factor(few.value, damping=0.01).report == {"damping": 0.01}
    raised = factor(few.value, damping=0.0).report
    assert raised["damping"] > 0 and raised["failed_factorisations"] >= 1
    needs_half = factor(torch.tensor([[1.0, -1.5], [-1.5, 1.0]])).report
    assert needs_half == {"damping": 0.64, "failed_factorisations": 6}
    needs_more = factor(torch.tensor([[1.0, -3.0], [-3.0, 1.0]])).report
    assert needs_more["damping"] == 1.0 and needs_more["floor"] == pytest.approx(3.0)
    nothing_helps = torch.full((4, 4), -1e9).fill_diagonal_(1.0)
    assert "identity" in factor(nothing_helps).report["factor"] and torch.equal(factor(nothing_helps).upper, torch.eye(4).double())


def test_hessian_streams_merges_and_masks():
    x = torch.randn(100, 6).half()
    whole, parts, other = Hessian(6), Hessian(6), Hessian(6)
    whole.update(x)
    parts.update(x[:30].reshape(5, 6, 6))
    padded = torch.cat((x[30:], torch.full((4, 6), 7.0).half()))
    other.update(padded.numpy(), mask=torch.arange(74) < 70)
    parts.merge(other)
    assert parts.rows == 100
    assert torch.allclose(parts.value, whole.value, rtol=1e-12, atol=1e-14) and torch.allclose(parts.mean, whole.mean, rtol=1e-12)
    assert torch.allclose(whole.value, (x.double().mT @ x.double()) / 100, rtol=1e-12)
    linear, watched = torch.nn.Linear(6, 2), Hessian(6)
    with watched.watching(linear):
        linear(x.float())
    linear(x.float())
    assert watched.rows == 100
    with pytest.raises(ShapeError, match="finite"):
        whole.update(torch.full((1, 6), torch.nan))
    assert whole.rows == 100


def test_refusals():
    w, h = correlated(4, 8)

    class Squashed(VQ):
        @property
        def input_space(self) -> bool:
            return False

    with pytest.raises(Unsupported, match="projected"):
        quantize_weight(w, h, Squashed(dim=4, codebook_size=4))
    vq = VQ(dim=4, codebook_size=4)
    with pytest.raises(ShapeError, match="8 x 8"):
        quantize_weight(w, h[:4, :4], vq)
    with pytest.raises(ShapeError):
        quantize_weight(w[0], h, vq)
    with pytest.raises(ShapeError, match="finite"):
        quantize_weight(w / 0, h, vq)
    with pytest.raises(ShapeError, match="NaN"):
        quantize_weight(w, h * torch.nan, vq)
    with pytest.raises(ShapeError, match="symmetric"):
        quantize_weight(w, h + torch.arange(8.0) * 10, vq)
    for wrong in ({"scale": "column"}, {"order": "random"}, {"order": torch.zeros(8, dtype=torch.int64)}, {"damping": 2.0}):
        with pytest.raises(CodewordError):
            quantize_weight(w, h, vq, **wrong)
    with pytest.raises(CodewordError, match="Hessian"):
        quantize_weight(w, None, vq, order="activation")
    with pytest.raises(CodewordError, match="no rows"):
        _ = Hessian(8).value


def test_factor_and_codes_do_not_depend_on_threads() -> None:
    w, h = correlated(4, 384)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            quantizer = VQ(dim=4, codebook_size=16, iterations=2)
            layer = quantize_weight(w, h, quantizer).layer
            found.append((factor(h).upper, layer.codes, layer.scales, quantizer.codebook))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
