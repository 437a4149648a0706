"""The bottleneck on Fashion-MNIST: every quantizer trains there a few hundred steps, those that learn also under torch.compile."""

from __future__ import annotations

import pytest
import torch
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
    "pq-ema": "pq:num_codebooks=2,codebook_size=16,iterations=8,learning=ema,decay=0.9",
    "rvq-diveq": "rvq:num_codebooks=2,codebook_size=16,iterations=8,beam=1,estimator=diveq_detached",
}
FIXED = {"rabitq": "rabitq:code_bits=2", "pvq": "pvq:bits=2"}


def build(spec: str, pictures: Tensor, seed: int = 0) -> tuple[Autoencoder, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Autoencoder.small(codeword.make(spec, DIM), width=8)
    model.start(pictures[:128])
    return model, torch.optim.Adam(model.parameters(), lr=3e-3)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, pictures: Tensor, steps: int) -> list[Step]:
    g = torch.Generator().manual_seed(1)
    return [train_step(model, pictures[torch.randint(len(pictures), (24,), generator=g)], optimizer) for _ in range(steps)]


@torch.no_grad()
def held_out(model: Autoencoder, pictures: Tensor) -> float:
    x = pictures[-128:]
    return float((model.eval()(x).values - x).square().mean())


@pytest.mark.parametrize("name", [*LEARNING, *FIXED])
def test_trains_a_few_hundred_steps(name: str, pictures: Tensor):
    """Held-out error falls below 0.4 of the pictures' variance, whoever stands at the bottleneck; codes and forward agree afterwards."""
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


def test_refusals(pictures: Tensor):
    with pytest.raises(CodewordError, match="Quantizer"):
        Autoencoder(encoder=torch.nn.Identity(), quantizer=torch.nn.Identity(), decoder=torch.nn.Identity())  # type: ignore[arg-type]
    model = Autoencoder.small(codeword.make(LEARNING["vq"], DIM), width=4)
    with pytest.raises(codeword.NotFitted):
        model(pictures[:2])
    narrow = Autoencoder(encoder=torch.nn.Conv2d(1, 4, 1), quantizer=codeword.make(LEARNING["fsq"], DIM), decoder=torch.nn.Identity())
    with pytest.raises(codeword.ShapeError, match="encoder"):
        narrow(pictures[:2])
