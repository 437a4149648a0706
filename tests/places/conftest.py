"""Real layers, activations, keys, values and pictures, a few each; tests skip with a reason where the shared data is absent."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from codeword.compress.hessian import Hessian


def shared_folder() -> Path:
    return Path(os.environ.get("CODEWORD_SHARED", Path(__file__).parents[2].parent / "shared"))


class Layer(NamedTuple):
    """W_q of a middle block of tinylm, the second moments of its inputs on two texts, and what its attention works on:
    queries, keys, values (16, 6, 256, 64) after rotary embedding."""

    weight: Tensor
    hessian: Hessian
    held_out: Hessian
    queries: Tensor
    keys: Tensor
    values: Tensor


@pytest.fixture(scope="session")
def layer() -> Layer:
    folder = shared_folder() / "models" / "tinylm"
    text = shared_folder() / "data" / "text" / "wikitext2_valid.txt"
    if not folder.is_dir() or not text.is_file():
        pytest.skip(f"needs {folder} and {text}")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor(tokenizer(text.read_text()[:40_000])["input_ids"][:5120]).reshape(20, 256)
    model.model.layers = model.model.layers[:3]  # what follows the block is not looked at
    attention = model.model.layers[2].self_attn
    hessian, held_out, inputs = Hessian(384), Hessian(384), []
    watch = attention.q_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        with hessian.watching(attention.q_proj):
            cache = model.model(tokens[:16], use_cache=True).past_key_values.layers[2]
        with held_out.watching(attention.q_proj):
            model.model(tokens[16:], use_cache=False)
        watch.remove()
        plain = attention.q_proj(inputs[0]).unflatten(-1, (6, 64)).transpose(1, 2)
        cos, sin = (part.unsqueeze(1) for part in model.model.rotary_emb(inputs[0], torch.arange(256).unsqueeze(0)))
        queries = plain * cos + torch.cat((-plain[..., 32:], plain[..., :32]), -1) * sin
    return Layer(attention.q_proj.weight.detach().clone(), hessian, held_out, queries, cache.keys.clone(), cache.values.clone())


def fashion(count: int) -> Tensor | None:
    """float32 (count, 1, 28, 28) of Fashion-MNIST in [0, 1], None where it is absent."""
    path = shared_folder() / "data" / "fashion_mnist" / "train-images-idx3-ubyte.gz"
    if not path.is_file():
        return None
    with gzip.open(path) as file:
        raw = file.read(16 + count * 784)
    assert raw[:4] == b"\x00\x00\x08\x03" and raw[8:16] == b"\x00\x00\x00\x1c\x00\x00\x00\x1c"
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).copy()).reshape(-1, 1, 28, 28).float() / 255


@pytest.fixture(scope="session")
def pictures() -> Tensor:
    """2048 pictures of Fashion-MNIST."""
    found = fashion(2048)
    if found is None:
        pytest.skip(f"needs {shared_folder() / 'data' / 'fashion_mnist'}")
    return found


@pytest.fixture(scope="session")
def any_pictures() -> Tensor:
    """96 pictures of Fashion-MNIST, or noise of their size where it is absent."""
    found = fashion(96)
    return torch.rand(96, 1, 28, 28, generator=torch.Generator().manual_seed(1)) if found is None else found


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
