"""The bottleneck: every quantizer trains there on Fashion-MNIST; under torch.compile; on two ranks with identical codebooks afterwards."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import codeword
from codeword import CodewordError
from codeword.nets.conv import Autoencoder, Step, train_step

DIM = 8
LEARNING = {
    "vq": "vq:codebook_size=64,iterations=8",
    "vq-ema": "vq:codebook_size=64,iterations=8,learning=ema,decay=0.9",
    "simvq": "simvq:codebook_size=64,steps=60",
    "fsq": "fsq:grid=8x5x5x5",
}
FIXED = {"pq": "pq:num_codebooks=2,codebook_size=16,iterations=8", "rabitq": "rabitq:code_bits=2", "pvq": "pvq:bits=2"}


def build(spec: str, pictures: Tensor, seed: int = 0) -> tuple[Autoencoder, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Autoencoder.small(codeword.make(spec, DIM), width=8)
    model.start(pictures[:128])
    return model, torch.optim.Adam(model.parameters(), lr=3e-3)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, pictures: Tensor, steps: int) -> list[Step]:
    g = torch.Generator().manual_seed(1)
    return [train_step(model, pictures[torch.randint(len(pictures), (32,), generator=g)], optimizer) for _ in range(steps)]


@torch.no_grad()
def held_out(model: Autoencoder, pictures: Tensor) -> float:
    x = pictures[-128:]
    return float((model.eval()(x).values - x).square().mean())


@pytest.mark.parametrize("name", [*LEARNING, *FIXED])
def test_trains_a_few_hundred_steps(name: str, pictures: Tensor):
    """Held-out error falls below 0.6 of the pictures' variance, whoever stands at the bottleneck; codes and forward agree afterwards."""
    model, optimizer = build((LEARNING | FIXED)[name], pictures)
    before = {key: value.clone() for key, value in model.quantizer.state_dict().items()}
    steps = train(model, optimizer, pictures[:-128], 200)
    error, variance = held_out(model, pictures), float(pictures[-128:].var())
    assert error < 0.4 * variance
    assert all(torch.isfinite(step.error) for step in steps)
    moved = any(not torch.equal(value, before[key]) for key, value in model.quantizer.state_dict().items())
    assert moved == (name in LEARNING and name != "fsq")
    assert torch.equal(model.decode(model.encode(pictures[-8:])), model(pictures[-8:]).values)


@pytest.mark.parametrize("name", LEARNING)
def test_compiled_equals_eager(name: str, pictures: Tensor):
    """Same codes and, up to rounding, the same losses and codebooks; one graph, no breaks."""
    eager, eager_optimizer = build(LEARNING[name], pictures)
    model, optimizer = build(LEARNING[name], pictures)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for expected, got in zip(train(eager, eager_optimizer, pictures, 3), train(compiled, optimizer, pictures, 3)):
        assert torch.allclose(expected.error, got.error, rtol=1e-4)
        assert torch.allclose(expected.quantizer_loss, got.quantizer_loss, rtol=1e-3)
    for (key, expected), got in zip(eager.quantizer.state_dict().items(), model.quantizer.state_dict().values()):
        assert torch.allclose(expected, got, rtol=1e-3, atol=1e-5), key
    torch._dynamo.reset()


def test_compiled_by_inductor(pictures: Tensor):
    """The whole way through generated code, once, at the quantizer itself."""
    quantizer = codeword.make(LEARNING["vq"], DIM).fit(pictures.reshape(-1, DIM)[:512])
    x = pictures.reshape(-1, DIM)[512:640].clone().requires_grad_()
    expected = quantizer(x)
    try:
        got = torch.compile(quantizer, fullgraph=True)(x)
    except torch._inductor.exc.InductorError as error:
        if "compiler" not in str(error).lower():
            raise
        pytest.skip("no C++ compiler for generated code here")
    assert torch.equal(got.values, expected.values) and torch.equal(got.codes.indices, expected.codes.indices)
    assert torch.allclose(got.loss, expected.loss, rtol=1e-6)
    torch._dynamo.reset()


def _rank(rank: int, port: int, pictures: Tensor, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for name, spec in LEARNING.items():
        model, optimizer = build(spec, pictures)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        for i in range(6):
            mine = pictures[i * 32 + rank * 16:i * 32 + rank * 16 + 16]
            train_step(wrapped, mine[:0] if rank == 1 and i == 3 else mine, optimizer)
        found[name] = {**model.state_dict(), "codes": model.encode(pictures[-16:]).indices}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_end_with_identical_codebooks(pictures: Tensor, tmp_path: Path):
    """Each rank sees other pictures, and one of them once none at all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, pictures[:320].clone(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, spec in LEARNING.items():
        start = build(spec, pictures[:320])[0].state_dict()
        moved = {key.partition(".")[0] for key, value in start.items() if not torch.equal(value, first[name][key])}
        assert moved == ({"encoder", "decoder"} if name == "fsq" else {"encoder", "quantizer", "decoder"})
        assert all(torch.equal(value, second[name][key]) for key, value in first[name].items()), name


def test_refusals(pictures: Tensor):
    with pytest.raises(CodewordError, match="Quantizer"):
        Autoencoder(encoder=torch.nn.Identity(), quantizer=torch.nn.Identity(), decoder=torch.nn.Identity())  # type: ignore[arg-type]
    model = Autoencoder.small(codeword.make(LEARNING["vq"], DIM), width=4)
    with pytest.raises(codeword.NotFitted):
        model(pictures[:2])
    narrow = Autoencoder(encoder=torch.nn.Conv2d(1, 4, 1), quantizer=codeword.make(LEARNING["fsq"], DIM), decoder=torch.nn.Identity())
    with pytest.raises(codeword.ShapeError, match="encoder"):
        narrow(pictures[:2])
