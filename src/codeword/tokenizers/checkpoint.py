"""The state of a training run in one file of ``io/tensors``: weights, their averages, optimizers, and where the run is. No pickle.

    model.*, average.*, discriminator.*, head.*   tensors by their names
    optimizer.I.KEY, critic.I.KEY                 Adam's state of parameter number I
    header                                        {"kind", "seconds", "settings", "step", "structure", "total"}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from codeword.errors import FormatError
from codeword.io import canonical
from codeword.io.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from codeword.tokenizers.train import Run, Settings

KIND = "training_checkpoint"


class Held(NamedTuple):
    """What a checkpoint holds."""

    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    discriminator: dict[str, Tensor]
    discriminator_optimizer: dict[str, Tensor]
    head: dict[str, Tensor]
    structure: dict[str, Any]
    step: int
    seconds: float
    total: int


def write(path: Path, run: Run) -> None:
    """Replace the checkpoint of ``run``."""
    content: dict[str, Tensor] = {}
    content |= {f"model.{name}": t for name, t in run.tokenizer.state_dict().items()}
    content |= {f"average.{name}": t for name, t in run.average.items()}
    content |= {f"optimizer.{name}": t for name, t in _optimizer_state(run.optimizer).items()}
    if run.losses.discriminator is not None:
        content |= {f"discriminator.{name}": t for name, t in run.losses.discriminator.state_dict().items()}
        content |= {f"critic.{name}": t for name, t in _optimizer_state(run.losses.optimizer).items()}
    if run.losses.head is not None:
        content |= {f"head.{name}": t for name, t in run.losses.head.state_dict().items()}
    write_tensors(path, {name: t.detach().cpu().contiguous() for name, t in content.items()},
                  {"kind": KIND, "seconds": float(run.seconds), "settings": dataclasses.asdict(run.settings), "step": run.step,
                   "structure": run.tokenizer.quantizer.structure, "total": run.total})


def read(path: Path, settings: Settings) -> Held:
    """A checkpoint of a run with these settings. Raises FormatError."""
    tensors, header = read_tensors(path)
    if header.get("kind") != KIND:
        raise FormatError("kind", f"{path} holds {str(header.get('kind'))[:40]!r}, not {KIND!r}")
    canonical.fields(header, f"header of {path}", {"kind": str, "seconds": (float, int), "settings": dict, "step": int, "structure": dict,
                                                   "total": int})
    if header["settings"] != canonical.decode(canonical.encode(dataclasses.asdict(settings)), "settings"):
        raise FormatError("fingerprint", f"{path} is the state of a run with other settings")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    return Held(part("model."), part("average."), part("optimizer."), part("discriminator."), part("critic."), part("head."),
                header["structure"], header["step"], float(header["seconds"]), header["total"])


def load_optimizer(optimizer: torch.optim.Optimizer, held: Mapping[str, Tensor]) -> None:
    """Adam's state, in the memory layout of its parameters: the arithmetic then goes on as if it had never stopped."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in held.items():
        number, _, key = name.partition(".")
        if not number.isdecimal() or int(number) >= len(parameters):
            raise FormatError("unknown-key", f"the checkpoint has optimizer state {name[:60]!r} of no parameter")
        parameter = parameters[int(number)]
        if tensor.ndim and tensor.shape != parameter.shape:
            raise FormatError("shape", f"optimizer state {name!r} has shape {tuple(tensor.shape)}; {tuple(parameter.shape)} is needed")
        optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(tensor).detach() if tensor.ndim else tensor


def _optimizer_state(optimizer: Any) -> dict[str, Tensor]:
    found = {}
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{number}.{key}"] = torch.as_tensor(value)
    return found
