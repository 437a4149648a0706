"""What an object of vector-quantize-pytorch says about itself, by its attributes alone: nothing of that package is imported."""

from __future__ import annotations

from typing import Any

from torch import nn

from codeword.errors import Unsupported

_LINEAR = ("Linear", "Identity")
_ACTIVATIONS = {"ReLU": "relu", "SiLU": "silu", "GELU": "gelu", "Tanh": "tanh"}


def describe(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """(kind, options) for ``convert``. Unsupported where the object does what has no exact equivalent."""
    name = type(module).__name__
    if name not in _KINDS:
        raise Unsupported(f"{name} is not read; {', '.join(_KINDS)} are")
    kind, options = _KINDS[name]
    return kind, options(module)


def _vq(module: Any) -> dict[str, Any]:
    book = module._codebook
    _refuse(getattr(book, "vq_bridge", None) is not None, "a codebook made by a bridge")
    _refuse(getattr(book, "affine_param", False), "an affine codebook, whose forward pass moves it in eval mode too")
    learned = bool(module.learnable_codebook) or bool(getattr(module, "has_codebook_orthogonal_loss", False))
    return {"cosine": bool(module.use_cosine_sim), "heads": int(module.heads), "learning": "gradient" if learned else "ema",
            "commitment": float(module.commitment_weight), "decay": float(book.decay)}


def _residual_vq(module: Any) -> dict[str, Any]:
    _refuse(bool(getattr(module, "implicit_neural_codebook", False)), "an implicit neural codebook")
    _refuse((getattr(module, "eval_beam_size", None) or 1) > 1, "beam search, whose scores add the errors of all stages")
    options = _vq(module.layers[0])
    del options["heads"]
    return options


def _fsq(module: Any) -> dict[str, Any]:
    _refuse(bool(getattr(module, "bound_hard_clamp", False)), "hard clamping instead of a tanh")
    return {"levels": module._levels.tolist(), "num_codebooks": int(module.num_codebooks), "symmetric": bool(module.preserve_symmetry)}


def _lfq(module: Any) -> dict[str, Any]:
    _refuse(type(module.project_in).__name__ not in _LINEAR, "a projection that normalises its input")
    return {"num_codebooks": int(module.num_codebooks), "scale": float(module.codebook_scale), "spherical": bool(module.spherical),
            "commitment": float(module.commitment_loss_weight), "entropy_weight": float(module.entropy_loss_weight),
            "gamma": float(module.diversity_gamma)}


def _simvq(module: Any) -> dict[str, Any]:
    """The activation between the linear layers, where it is one and the same."""
    options: dict[str, Any] = {"commitment": float(module.input_to_quantize_commit_loss_weight)}
    transform = module.code_transform
    if type(transform).__name__ == "Linear":
        return options
    names = [type(layer).__name__ for layer in transform] if isinstance(transform, nn.Sequential) else [type(transform).__name__]
    between = set(names[1::2])
    regular = len(names) % 2 == 1 and set(names[::2]) == {"Linear"} and len(between) <= 1 and between <= _ACTIVATIONS.keys()
    exact = all(getattr(layer, "approximate", "none") == "none" for layer in transform.modules())
    _refuse(not regular or not exact, f"a code_transform of {', '.join(names)} (linear layers with {', '.join(_ACTIVATIONS)} are read)")
    return options | ({"activation": _ACTIVATIONS[between.pop()]} if between else {})


def _refuse(found: bool, what: str) -> None:
    if found:
        raise Unsupported(f"the module has {what}; that has no exact equivalent here")


_KINDS = {"VectorQuantize": ("vq", _vq), "ResidualVQ": ("residual_vq", _residual_vq), "FSQ": ("fsq", _fsq), "LFQ": ("lfq", _lfq),
          "SimVQ": ("simvq", _simvq)}
