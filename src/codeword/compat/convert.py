"""Checkpoints of vector-quantize-pytorch as our quantizers: equal indices, equal values, and training can go on.

    kind           their class         becomes
    vq             VectorQuantize      VQ, with cosine similarity CosineVQ; several heads: a Product of them, or one shared by the heads
    residual_vq    ResidualVQ          RVQ; cosine, stages of unequal size: Residual of these
    fsq            FSQ                 FSQ with its "outer" or "symmetric" curve
    lfq            LFQ                 LFQ with the first bit highest
    simvq          SimVQ               SimVQ where the transform is one linear layer as wide as the codebook, else its baked VQ

Where their width differs from the codes' the result is ``Affine`` around these, and an orthogonal rotation is multiplied into its maps.
What cannot be represented exactly is refused with Unsupported: bridges, affine codebooks (there a forward pass in eval mode moves them),
implicit neural codebooks, layer norms behind the projection, beam search (their scores add the errors of all stages), hard clamping.

Equal means: the indices are equal but where two codewords are as near as float32 sums can tell (theirs depend on the order of
summation, ours are exact); values are equal to the bit, or to rounding where linear maps are involved. Layout is ours: the last axis
is the width, whatever ``channel_last`` or ``accept_image_fmap`` said there. Where their ``get_output_from_indices`` differs from their
forward, we follow forward: it leaves out bridges and affine maps, and for images moves channels before the projection.

A state_dict does not say everything. Their modules do, so ``from_vector_quantize_pytorch`` needs no options; nothing of that package is
imported. ``load`` takes a file or state_dict, and by keyword what the state leaves open:

    vq, residual_vq    cosine=False, heads=1 (where the codebook is shared and nothing is projected), learning="ema" or "gradient"
                       (by default "ema" where the codewords are those of the averages), commitment=1.0, decay=0.8
    fsq                levels (needed), num_codebooks=1, symmetric=False
    lfq                num_codebooks=1, scale=1.0, spherical=False
    simvq              activation: "relu", "gelu", "silu" or "tanh" between the layers of a transform with more than one
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codeword.compat import modules, states
from codeword.compat.codebooks import residual_vq, vq
from codeword.compat.parts import Reader, Wanted, around
from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.parts.baking import plain_vq
from codeword.parts.threads import one_thread
from codeword.quantizer import Quantizer
from codeword.quantizers.fsq import FSQ
from codeword.quantizers.lfq import LFQ
from codeword.quantizers.simvq import SimVQ

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu,
                                                      "tanh": torch.tanh}


class Imported(NamedTuple):
    """``notes``: what is not as it was there, in sentences; codes and values are."""

    kind: str
    quantizer: Quantizer
    notes: tuple[str, ...]


def load(source: str | Path | Mapping[str, Any], kind: str | None = None, *, prefix: str = "", **options: Any) -> Quantizer:
    """The quantizer in ``source``: a safetensors file, a file of torch.save, or a state_dict. ``kind``: one of ``KINDS``, by default read
    off the names of the tensors; ``prefix``: of the quantizer's names in a larger state, such as "quantizer."; options: see above.
    Raises FormatError for a damaged or hostile file, Unsupported for what has no exact equivalent."""
    return convert(source, kind, prefix=prefix, **options).quantizer


def from_vector_quantize_pytorch(module: nn.Module) -> Quantizer:
    """The quantizer that ``module``, an object of that package, is: its options are read off the object."""
    kind, options = modules.describe(module)
    return convert(module.state_dict(), kind, **options).quantizer


def convert(source: str | Path | Mapping[str, Any], kind: str | None = None, *, prefix: str = "", **options: Any) -> Imported:
    """As ``load``, with what was found."""
    held, what = (source, "the state") if isinstance(source, Mapping) else (states.read(source), str(source))
    state = states.part(held, prefix, what, may_be_empty=kind == "fsq")
    kind = _guess(state, what) if kind is None else kind
    if kind not in KINDS:
        raise CodewordError(f"kind={kind!r} is not known; one of {', '.join(KINDS)} is needed")
    reader = Reader(state, what)
    wanted = Wanted(kind, options)
    try:
        quantizer = KINDS[kind](reader, wanted)
        wanted.all_used()
        reader.all_read()
        quantizer.restore({**quantizer.structure, "fitted": True})
        quantizer.check_state()
    except (Unsupported, FormatError):
        raise
    except CodewordError as error:
        raise CodewordError(f"{what}: {error}") from None
    return Imported(kind, quantizer.eval(), tuple(reader.notes))


def _guess(state: Mapping[str, Tensor], what: str) -> str:
    if "frozen_codebook" in state:
        return "simvq"
    if "_codebook.embed" in state:
        return "vq"
    if "layers.0._codebook.embed" in state:
        return "residual_vq"
    if "mask" in state:
        return "lfq"
    raise CodewordError(f"the names in {what} ({', '.join(sorted(state)[:4])}) do not say what it is; name its kind, one of "
                        f"{', '.join(KINDS)}")


# ---------------------------------------------------------------------- lattices


def _fsq(read: Reader, wanted: Wanted) -> Quantizer:
    levels = wanted("levels", None)
    if not isinstance(levels, (list, tuple)) or not all(type(level) is int for level in levels):
        raise CodewordError(f"levels={levels!r}; a state of FSQ does not hold its levels, name them, such as [8, 5, 5, 5]")
    symmetric, books = wanted("symmetric", False), wanted("num_codebooks", None)
    projected, rotation = read.projection(), read.rotation(len(levels))
    width = len(projected.weight_in) if projected is not None else len(levels) * (books or 1)
    if (books is not None and books * len(levels) != width) or width % len(levels):
        raise CodewordError(f"levels={levels} and num_codebooks={books} do not give the width {width} of the projections")
    if 2 in levels and not symmetric:
        raise CodewordError(f"levels={levels} with a 2 in them exist there with symmetric=True only")
    fsq = FSQ(dim=width, grid=levels, curve="symmetric" if symmetric else "outer")
    return around(fsq, projected, rotation, read)


def _lfq(read: Reader, wanted: Wanted) -> Quantizer:
    mask = read.tensor("mask", 1)
    bits = len(mask)
    if not 1 <= bits <= 32 or not torch.equal(mask.long(), 2 ** torch.arange(bits - 1, -1, -1)):
        raise FormatError("value", f"{read.what} has a mask that is not 2^(d-1) ... 2, 1, as LFQ's is")
    projected, rotation = read.projection(), read.rotation(bits)
    books, scale = wanted("num_codebooks", None), wanted("scale", 1.0)
    width = len(projected.weight_in) if projected is not None else bits * (books or 1)
    if width % bits or books not in (None, width // bits):
        raise CodewordError(f"num_codebooks={books} does not give the width {width} of the projections with {bits} bits a code")
    if wanted("spherical", False):
        scale = scale / bits**0.5
        read.notes.append("codes and values are those of binary spherical quantization; the losses in training are LFQ's, of its scale")
    lfq = LFQ(dim=width, num_codebooks=width // bits, scale=scale, bit_order="high", commitment=wanted("commitment", 0.0),
              entropy_weight=wanted("entropy_weight", 0.1), gamma=wanted("gamma", 1.0), temperature=0.01)
    return around(lfq, projected, rotation, read)


# ---------------------------------------------------------------------- SimVQ


def _simvq(read: Reader, wanted: Wanted) -> Quantizer:
    basis = read.tensor("frozen_codebook", 2)
    commitment = wanted("commitment", 0.25)
    layers = read.layers("code_transform.")
    activation = wanted("activation", None)
    widths = [basis.shape[1], *(len(weight) for weight, _ in layers)]
    for (weight, bias), width in zip(layers, widths[:-1], strict=True):
        if weight.shape[1] != width or (bias is not None and bias.shape != (len(weight),)):
            raise FormatError("shape", f"{read.what} has a code_transform of shapes {[tuple(weight.shape) for weight, _ in layers]} for "
                              f"codewords of width {basis.shape[1]}")
    if len(layers) == 1 and widths[0] == widths[1]:
        weight, bias = layers[0]
        simvq = SimVQ(dim=len(weight), codebook_size=len(basis), commitment=commitment)
        with torch.no_grad():
            simvq.basis.copy_(basis)
            simvq.weight.copy_(weight)
            simvq.bias.copy_(weight.new_zeros(len(weight)) if bias is None else bias)
        return simvq
    if len(layers) > 1 and activation not in ACTIVATIONS:
        raise CodewordError(f"activation={activation!r}; a state does not say what stands between the {len(layers)} linear layers of its "
                            f"transform, one of {', '.join(ACTIVATIONS)} is needed")
    read.notes.append("the transform is more than a square linear layer: the codebook it makes was kept, as a plain one")
    codebook = basis.double()
    with one_thread():
        for i, (weight, bias) in enumerate(layers):
            entered = codebook if i == 0 else ACTIVATIONS[activation](codebook)
            codebook = nn.functional.linear(entered, weight.double(), None if bias is None else bias.double())
    return plain_vq(codebook.float(), commitment=commitment, seed=0)


KINDS: dict[str, Callable[[Reader, Wanted], Quantizer]] = {"vq": vq, "residual_vq": residual_vq, "fsq": _fsq, "lfq": _lfq,
                                                           "simvq": _simvq}
"""What is read, by name."""
