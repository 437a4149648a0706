"""Objects of vector-quantize-pytorch that the converter is tested on, and the tiny golden states made from them.

    python tests/compat/peers.py            adds what is missing under tests/compat/golden

Each NAME.safetensors holds the module's state_dict under "state.", rows "x", and what its forward pass in eval mode gave for them,
"indices" and "values"; the metadata says its kind and the options that a state_dict leaves open. Existing files stay. Needs the package;
the tests do without it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

HOME = Path(__file__).parent / "golden"
ROWS = 24


class Peer(NamedTuple):
    kind: str
    module: Any
    dim: int
    options: dict[str, Any] = {}  # noqa: RUF012  (never changed)


def peers() -> dict[str, Peer]:
    """One object of every kind and variant that is read, by name; weights from torch's generator."""
    import vector_quantize_pytorch as package
    vq, rvq, fsq, lfq, sim = package.VectorQuantize, package.ResidualVQ, package.FSQ, package.LFQ, package.SimVQ
    deep = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))
    return {
        "vq": Peer("vq", vq(dim=6, codebook_size=12), 6),
        "vq_learnable": Peer("vq", vq(dim=6, codebook_size=12, learnable_codebook=True, ema_update=False), 6),
        "vq_projected": Peer("vq", vq(dim=7, codebook_size=12, codebook_dim=4), 7),
        "vq_cosine": Peer("vq", vq(dim=6, codebook_size=12, use_cosine_sim=True), 6, {"cosine": True}),
        "vq_cosine_projected": Peer("vq", vq(dim=7, codebook_size=12, codebook_dim=4, use_cosine_sim=True), 7, {"cosine": True}),
        "vq_heads_shared": Peer("vq", vq(dim=6, codebook_size=12, codebook_dim=3, heads=2), 6, {"heads": 2}),
        "vq_heads_projected": Peer("vq", vq(dim=5, codebook_size=12, codebook_dim=3, heads=2), 5),
        "vq_heads_separate": Peer("vq", vq(dim=6, codebook_size=12, codebook_dim=3, heads=2, separate_codebook_per_head=True), 6),
        "vq_heads_cosine": Peer("vq", vq(dim=5, codebook_size=9, codebook_dim=3, heads=2, separate_codebook_per_head=True,
                                         use_cosine_sim=True), 5, {"cosine": True}),
        "residual_vq": Peer("residual_vq", rvq(dim=6, num_quantizers=3, codebook_size=8), 6),
        "residual_vq_shared": Peer("residual_vq", rvq(dim=6, num_quantizers=3, codebook_size=8, shared_codebook=True), 6),
        "residual_vq_unequal": Peer("residual_vq", rvq(dim=6, codebook_size=(8, 5)), 6),
        "residual_vq_projected": Peer("residual_vq", rvq(dim=7, num_quantizers=2, codebook_size=8, codebook_dim=4), 7),
        "residual_vq_cosine": Peer("residual_vq", rvq(dim=6, num_quantizers=2, codebook_size=8, use_cosine_sim=True), 6, {"cosine": True}),
        "fsq": Peer("fsq", fsq([8, 5, 5]), 3, {"levels": [8, 5, 5]}),
        "fsq_books": Peer("fsq", fsq([4, 3], num_codebooks=2), 4, {"levels": [4, 3], "num_codebooks": 2}),
        "fsq_projected": Peer("fsq", fsq([8, 6, 5], dim=5), 5, {"levels": [8, 6, 5]}),
        "fsq_symmetric": Peer("fsq", fsq([2, 4, 5], preserve_symmetry=True), 3, {"levels": [2, 4, 5], "symmetric": True}),
        "fsq_rotated": Peer("fsq", fsq([5, 5, 5], orthogonal_rotation=True), 3, {"levels": [5, 5, 5]}),
        "fsq_rotated_projected": Peer("fsq", fsq([5, 5], dim=7, num_codebooks=2, orthogonal_rotation=True), 7, {"levels": [5, 5]}),
        "lfq": Peer("lfq", lfq(codebook_size=64), 6),
        "lfq_scale": Peer("lfq", lfq(codebook_size=64, codebook_scale=0.5), 6, {"scale": 0.5}),
        "lfq_books": Peer("lfq", lfq(codebook_size=8, dim=6, num_codebooks=2), 6, {"num_codebooks": 2}),
        "lfq_projected": Peer("lfq", lfq(codebook_size=16, dim=6, num_codebooks=2), 6),
        "lfq_spherical": Peer("lfq", lfq(codebook_size=64, spherical=True), 6, {"spherical": True}),
        "lfq_clamped": Peer("lfq", lfq(codebook_size=64, soft_clamp_input_value=2.0), 6),
        "lfq_rotated": Peer("lfq", lfq(codebook_size=64, orthogonal_rotation=True), 6),
        "simvq": Peer("simvq", sim(dim=6, codebook_size=12), 6),
        "simvq_narrow": Peer("simvq", sim(dim=6, codebook_size=12, frozen_codebook_dim=4), 6),
        "simvq_deep": Peer("simvq", sim(dim=6, codebook_size=12, codebook_transform=deep), 6, {"activation": "relu"}),
    }


@torch.no_grad()
def answers(peer: Peer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Indices int64 (n, positions) and values (n, dim) of rows x (n, dim), from the forward pass in eval mode."""
    out = peer.module.eval()(x.unsqueeze(0))
    return out[1].reshape(len(x), -1).long().contiguous(), out[0].reshape(x.shape)


def main() -> None:
    import safetensors.torch
    torch.manual_seed(0)
    HOME.mkdir(exist_ok=True)
    for name, peer in peers().items():
        x = 1.5 * torch.randn(ROWS, peer.dim)
        indices, values = answers(peer, x)
        path = HOME / f"{name}.safetensors"
        if not path.exists():
            state = {f"state.{key}": value.clone().contiguous() for key, value in peer.module.state_dict().items()}
            told = json.dumps({"kind": peer.kind, "options": peer.options}, sort_keys=True)
            safetensors.torch.save_file({**state, "x": x, "indices": indices, "values": values.clone().contiguous()}, path, {"peer": told})
            print("added", name)


if __name__ == "__main__":
    sys.exit(main())
