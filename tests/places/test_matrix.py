"""Every cell of ``codeword places``, run: each catalog entry in each place does what the matrix says, or refuses as it says."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from codeword import FSQ, Index, Unsupported, catalog
from codeword.compress.caches.kv import KVCache
from codeword.compress.hessian import Hessian, proxy_loss
from codeword.compress.weights.columns import quantize_weight
from codeword.nets.conv import Autoencoder, train_step
from codeword.parts.arrays import keep_dtype
from codeword.quantizer import Quantizer
from codeword.quantizers.gain_shape import GainShape
from codeword.quantizers.projected import Projected
from codeword.report import places

MATRIX = places.matrix()
NAMES = list(MATRIX["rows"])
RANKS = {
    "vq by averages": ("vq:codebook_size=12,iterations=3,learning=ema,revival=0.3", 6),
    "vq revived": ("vq:codebook_size=12,iterations=3,revival=0.3,estimator=rotation", 6),
    "vq by index backpropagation": ("vq:codebook_size=12,iterations=3,estimator=ibq,penalties=entropy:0.1", 6),
    "rvq by averages": ("rvq:num_codebooks=3,codebook_size=4,iterations=3,beam=1,learning=ema,revival=0.3,dropout=0.5", 6),
    "pq by averages": ("pq:num_codebooks=3,codebook_size=4,iterations=3,learning=ema,revival=0.3", 6),
    "simvq by diveq": ("simvq:codebook_size=12,steps=5,estimator=diveq", 6),
}
"""Further ways of training, on two ranks."""


def example(name: str) -> Quantizer:
    """A fresh, unfitted example."""
    return catalog.make(*RANKS[name]) if name in RANKS else dict(places.examples())[name]


def cell(name: str, place: str) -> str:
    return MATRIX["rows"][name][MATRIX["places"].index(place)]


def rows(n: int, dim: int, seed: int = 0) -> Tensor:
    """Correlated Gaussian rows."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    return torch.randn(n, dim, generator=g) @ (torch.eye(dim) + mix)


def fitting(name: str, place: str, use: Callable[[Quantizer], Any]) -> Quantizer:
    """The example itself where the place takes it; where the matrix says "wrap": the place refuses, and a wrapper stands in."""
    quantizer = example(name)
    if cell(name, place) != places.WRAP:
        return quantizer
    fitted = example(name).fit(rows(200, quantizer.dim))
    with pytest.raises(Unsupported, match="wrap"):
        use(fitted)
    if name == "cosine_vq":  # a direction alone cannot take the error of other columns over
        return GainShape(quantizer=quantizer, gain_bits=4)
    return Projected(quantizer=quantizer, dim=quantizer.dim)


def test_matrix_covers_the_catalog():
    assert len(MATRIX["rows"]) == len(catalog.QUANTIZERS)
    assert all(len(cells) == len(MATRIX["places"]) for cells in MATRIX["rows"].values())
    assert cell("vq", "GPTQ") == "metric" and cell("fsq", "KV") == "wrap" and cell("rabitq", "flat") == "fused"


@pytest.mark.parametrize("nlist", [None, 4])
@pytest.mark.parametrize("name", NAMES)
def test_search(name: str, nlist: int | None):
    place = "flat" if nlist is None else "lists"
    dim = example(name).dim
    quantizer = fitting(name, place, lambda q: Index(dim=dim, quantizer=q, nlist=nlist))
    x = rows(220, dim)
    index = Index(dim=dim, quantizer=quantizer, nlist=nlist).fit(x[:200])
    index.add(x[:200])
    hits = index.search(x[200:], k=10, nprobe=4)
    assert index._schema is not None
    fused = index._schema.scanner is index.quantizer
    assert fused == (cell(name, place) == "fused")
    truth = torch.cdist(x[200:], x[:200]).topk(10, largest=False).indices
    found = torch.as_tensor(hits.ids)
    recall = float((found.unsqueeze(2) == truth.unsqueeze(1)).any(2).float().mean())
    assert recall > 0.15  # three times chance, at one to three bits
    if not fused:  # what is compared is the decoded row itself
        values = torch.as_tensor(index.reconstruct(hits.ids.reshape(-1))).reshape(20, 10, dim)
        expected = (values - x[200:].unsqueeze(1)).square().sum(-1)
        assert torch.allclose(torch.as_tensor(hits.distances), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_columns(name: str):
    dim = example(name).dim
    h = Hessian(4 * dim)
    h.update(rows(400, 4 * dim, seed=2) @ torch.randn(4 * dim, 4 * dim, generator=torch.Generator().manual_seed(3)))
    weight = torch.randn(48, 4 * dim, generator=torch.Generator().manual_seed(4))
    quantizer = fitting(name, "GPTQ", lambda q: quantize_weight(weight, h.value, q))
    result = quantize_weight(weight, h.value, quantizer)
    nearest = quantize_weight(weight, None, quantizer)
    assert result.report["metric"] == {"metric": "schur", "l2": "l2", "wrap": "l2"}[cell(name, "GPTQ")]
    assert result.report["proxy_loss"] < proxy_loss(weight, nearest.layer.weight, h.value)
    counted = 8 * quantizer.stored_bytes(4 * 48) / weight.numel()
    assert result.report["bits"]["indices"] + result.report["bits"].get("side", 0) == pytest.approx(counted)


@pytest.mark.parametrize("name", NAMES)
def test_cache(name: str):
    dim = example(name).dim
    quantizer = fitting(name, "KV", lambda q: KVCache(q, q))
    k, v, q = (rows(2 * 2 * 24, dim, seed).reshape(2, 2, 24, dim) for seed in (0, 1, 2))
    quantizer.fit(torch.cat((k, v)))
    moment = torch.eye(dim) if "metric" in cell(name, "KV") else None
    cache = KVCache(quantizer, quantizer, window=4, page=5, query_moment=moment)
    cache.append(k[:, :, :9], v[:, :, :9])
    cache.append(k[:, :, 9:], v[:, :, 9:])
    decoded = torch.as_tensor(quantizer.decode(quantizer.encode(v)))
    assert torch.equal(cache.decode()[1], torch.cat((decoded[:, :, :20], v[:, :, 20:]), 2))
    keys, values = cache.decode()
    expected = torch.nn.functional.scaled_dot_product_attention(q[:, :, -1:], keys, values)
    assert torch.allclose(cache.attend(q[:, :, -1:]), expected, atol=1e-5)
    assert cache.report()["coded_bits"] == pytest.approx(8 * quantizer.stored_bytes(20) / (20 * dim))
    if moment is None:
        with pytest.raises(Unsupported):
            KVCache(quantizer, quantizer, query_moment=torch.eye(dim))


def bottleneck(name: str, x: Tensor) -> tuple[Autoencoder, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Autoencoder.small(example(name), width=4)
    model.start(x[:32])
    return model, torch.optim.SGD(model.parameters(), lr=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_bottleneck(name: str, any_pictures: Tensor):
    x = any_pictures
    model, optimizer = bottleneck(name, x)
    before = {key: value.clone() for key, value in model.quantizer.state_dict().items()}
    for i in range(4):
        step = train_step(model, x[i * 24:i * 24 + 24], optimizer)
        assert bool(torch.isfinite(step.error)) and bool(torch.isfinite(step.quantizer_loss))
    moved = any(not torch.equal(value, before[key]) for key, value in model.quantizer.state_dict().items())
    assert moved == (cell(name, "ranks") == "same")
    assert torch.equal(model.eval().decode(model.encode(x)), model(x).values)
    z = model._latents(x).detach().requires_grad_()
    out = model.quantizer(z)
    out.values.sum().backward()
    if cell(name, "network") == "fixed":
        assert z.grad is not None and torch.allclose(z.grad, torch.ones_like(z.grad), atol=1e-4) and float(out.loss.detach()) > 0
    else:
        assert moved or name in ("fsq", "lfq", "bsq", "projected(fsq)")


@pytest.mark.parametrize("name", NAMES)
def test_compiles_to_one_graph(name: str):
    quantizer = example(name)
    quantizer.fit(rows(200, quantizer.dim))
    x, y = (rows(33, quantizer.dim, seed=1).requires_grad_() for _ in range(2))
    torch.manual_seed(0)  # for those that draw in training
    eager = quantizer(x)
    torch.manual_seed(0)
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(y)
    (eager.values.square().sum() + eager.loss).backward()
    (compiled.values.square().sum() + compiled.loss).backward()
    torch._dynamo.reset()
    assert torch.equal(torch.as_tensor(eager.codes.indices), torch.as_tensor(compiled.codes.indices))
    assert torch.allclose(eager.values, compiled.values, atol=1e-6)
    assert x.grad is not None and y.grad is not None and torch.allclose(x.grad, y.grad, rtol=1e-4, atol=1e-6)


def _rank(rank: int, port: int, x: Tensor, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for name in (*NAMES, *RANKS):
        model, optimizer = bottleneck(name, x)
        torch.manual_seed(rank)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        for i in range(3):
            mine = x[i * 32 + rank * 16:i * 32 + rank * 16 + 16]
            train_step(wrapped, mine[:0] if rank == 0 and i == 1 else mine, optimizer)
        found[name] = model.state_dict()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks(any_pictures: Tensor, tmp_path: Path):
    """Each rank sees other pictures, and one of them once none at all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, any_pictures, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in (*NAMES, *RANKS):
        start = bottleneck(name, any_pictures)[0].state_dict()
        assert all(torch.equal(value, second[name][key]) for key, value in first[name].items()), name
        moved = any(not torch.equal(value, first[name][key]) for key, value in start.items() if key.startswith("quantizer"))
        assert moved == (name in RANKS or cell(name, "ranks") == "same"), name


def test_every_place_refuses_in_the_same_words():
    fsq = FSQ(dim=4, grid=[4, 4, 4, 4])
    for use in (lambda: quantize_weight(torch.ones(2, 4), None, fsq), lambda: KVCache(fsq, fsq), lambda: Index(dim=4, quantizer=fsq)):
        with pytest.raises(Unsupported, match=r"^fsq decodes outside .* projected\(fsq\) or gain_shape\(fsq\)$"):
            use()


def test_a_move_keeps_the_dtype():
    half = keep_dtype(lambda tensor: tensor.half())
    given = torch.tensor([1.0, 1 / 3])
    assert half(given).dtype == torch.float32 and torch.equal(half(given), given)
    assert torch.equal(keep_dtype(lambda tensor: tensor + 1)(given), given + 1)
