"""The cache: same state for any chunking, attention over codes equals attention over what they decode to, error against bits, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codeword import PQ, VQ, CodewordError, NotFitted, RaBitQ, ShapeError, Unsupported
from codeword.compress.caches.kv import KVCache


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the newest queries, in float64."""
    n, tokens = q.shape[2], k.shape[2]
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q.double() @ k.mT / q.shape[-1]**0.5
    scores = scores.masked_fill(torch.arange(tokens) > torch.arange(tokens - n, tokens).unsqueeze(1), -torch.inf)
    return scores.softmax(-1) @ v


@pytest.fixture(scope="module")
def made() -> tuple[Tensor, Tensor, Tensor, PQ]:
    """Random queries (four heads), keys and values (two heads), 50 tokens of width 8, and a quantizer fitted on them."""
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 4, 50, 8, generator=g), torch.randn(3, 2, 50, 8, generator=g), torch.randn(3, 2, 50, 8, generator=g)
    return q, k, v, PQ(dim=8, num_codebooks=3 + 1, codebook_size=12, iterations=5).fit(torch.cat((k, v)))


@pytest.mark.parametrize("chunks", [[50], [1] * 50, [7, 0, 30, 13]])
@pytest.mark.parametrize(("window", "page"), [(0, 3), (5, 8), (64, 64)])
def test_state_does_not_depend_on_chunks(chunks: list[int], window: int, page: int, made):
    q, k, v, quantizer = made
    cache, whole = KVCache(quantizer, quantizer, window=window, page=page), KVCache(quantizer, quantizer, window=window, page=page)
    whole.append(k, v)
    for part_k, part_v in zip(k.split(chunks, 2), v.split(chunks, 2)):
        cache.append(part_k, part_v)
    assert len(cache) == 50 and cache.bytes == whole.bytes
    assert all(torch.equal(a, b) for a, b in zip(cache.decode(), whole.decode()))
    assert torch.equal(cache.attend(q[:, :, -4:]), whole.attend(q[:, :, -4:]))
    coded = max(0, (50 - window) // page) * page
    decoded = quantizer.decode(quantizer.encode(k))
    assert torch.equal(cache.decode()[0], torch.cat((decoded[:, :, :coded], k[:, :, coded:]), 2))


@pytest.mark.parametrize("n", [1, 4, 50])
def test_attend_equals_attention_over_decoded_codes(n: int, made):
    q, k, v, quantizer = made
    cache = KVCache(quantizer, quantizer, window=5, page=8)
    cache.append(k, v)
    expected = attention(q[:, :, -n:], *cache.decode())
    assert torch.allclose(cache.attend(q[:, :, -n:]).double(), expected, atol=2e-6)
    keys, values = (x.double().repeat_interleave(2, 1) for x in cache.decode())
    everything = (q.double() * 3 @ keys.mT).softmax(-1) @ values
    assert torch.allclose(cache.attend(q, causal=False, scale=3.0).double(), everything, atol=2e-5)


def test_bytes_are_what_is_stored(made):
    _, k, v, quantizer = made
    cache = KVCache(quantizer, quantizer, window=5, page=8)
    assert cache.bits == 0.0
    cache.append(k.half(), v.half())
    pages = 2 * 5 * (3 * 2 * 8 * 4 * 4 // 8)  # five pages of 3 x 2 x 8 rows, four indices of 4 bits
    window = 2 * 3 * 2 * 10 * 8 * 2
    assert cache.bytes == pages + window
    assert cache.bits == pytest.approx(8 * cache.bytes / (2 * 3 * 2 * 50 * 8))
    report = cache.report()
    assert (report["tokens"], report["coded"], report["coded_bits"]) == (50, 40, 2.0)
    assert cache.shared_bytes == quantizer.shared_bytes
    assert cache.attend(torch.randn(3, 4, 1, 8).half()).dtype == torch.float16


def test_error_falls_with_bits_on_real_attention(layer):
    """Keys and values of a trained model: the output error falls with every bit, and a window of exact tokens helps."""
    q, k, v = (x[15:, :2] for x in (layer.queries, layer.keys, layer.values))
    exact = attention(q[:, :, -32:], k, v)

    def error(bits: int, window: int) -> float:
        quantizer = RaBitQ(dim=64, code_bits=bits)
        cache = KVCache(quantizer, quantizer, window=window, page=32)
        cache.append(k, v)
        return float((cache.attend(q[:, :, -32:]) - exact).square().sum() / exact.square().sum())

    one, two, four = error(1, 0), error(2, 0), error(4, 0)
    assert one > 2 * two and two > 4 * four and four < 0.03
    assert error(2, 64) < two


def test_query_moment_lowers_the_error_of_scores(layer):
    keys, queries = layer.keys[:, 0].reshape(-1, 64), layer.queries[:, 0].reshape(-1, 64)
    moment = queries.double().mT @ queries.double() / len(queries)
    quantizer = VQ(dim=64, codebook_size=64, iterations=5).fit(keys)

    def error(query_moment: Tensor | None) -> float:
        cache = KVCache(quantizer, quantizer, window=0, page=64, query_moment=query_moment)
        cache.append(layer.keys[:, :1], layer.values[:, :1])
        return float(((cache.decode()[0] - layer.keys[:, :1]) @ queries[::16].mT).square().mean())

    assert error(moment) < error(None)


def test_refusals(made):
    q, k, v, quantizer = made

    class Squashed(PQ):
        @property
        def input_space(self) -> bool:
            return False

    with pytest.raises(Unsupported, match="projected"):
        KVCache(Squashed(dim=8, num_codebooks=4), quantizer)
    with pytest.raises(NotFitted):
        KVCache(PQ(dim=8, num_codebooks=4), quantizer)
    with pytest.raises(Unsupported, match="L2"):
        KVCache(RaBitQ(dim=8, code_bits=2), quantizer, query_moment=torch.eye(8))
    with pytest.raises(CodewordError):
        KVCache(quantizer, quantizer, window=-1)
    cache = KVCache(quantizer, quantizer, window=0, page=4)
    with pytest.raises(ShapeError, match="empty"):
        cache.decode()
    with pytest.raises(ShapeError, match="at least one"):
        cache.attend(q)
    cache.append(k, v)
    before = cache.decode()
    for bad_k, bad_v in ((k[..., :4], v), (k, v[:, :, :3]), (k[:1], v[:1]), (k.half(), v.half()), (k * torch.nan, v), (k[0], v[0]),
                         (k.int(), v)):
        with pytest.raises(ShapeError):
            cache.append(bad_k, bad_v)
    assert all(torch.equal(a, b) for a, b in zip(cache.decode(), before))
    for bad_q in (q[:, :3], q[:2], q[..., :4], torch.cat((q, q), 2)):
        with pytest.raises(ShapeError):
            cache.attend(bad_q)
