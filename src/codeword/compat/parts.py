"""What the kinds share: tensors taken out of a state one by one, options that are all looked at, and linear maps around a quantizer."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from codeword.errors import CodewordError, FormatError, Unsupported
from codeword.quantizer import Quantizer
from codeword.quantizers.affine import Affine

_REFUSED = (
    (r"mlps\.", "an implicit neural codebook, whose codewords depend on the stages before"),
    (r"project_in\.1\.", "a layer norm behind its projection"),
    (r"(.*\.)?_codebook\.vq_bridge\.", "a codebook made by a bridge"),
    (r"(.*\.)?_codebook\.(codebook|batch)_", "an affine codebook, whose forward pass moves it in eval mode too"),
)


class Projection(NamedTuple):
    """y = weight_in x + bias_in, x^ = weight_out v + bias_out."""

    weight_in: Tensor
    bias_in: Tensor
    weight_out: Tensor
    bias_out: Tensor


class Wanted:
    """Options given by keyword: each is asked for once, and one that nobody asked for is a mistake."""

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        self._kind, self._options, self._asked = kind, options, set[str]()

    def __call__(self, name: str, default: Any) -> Any:
        self._asked.add(name)
        value = self._options.get(name)
        return default if value is None else value

    def all_used(self) -> None:
        unknown = sorted(name for name, value in self._options.items() if name not in self._asked and value is not None)
        if unknown:
            raise CodewordError(f"a state of kind {self._kind!r} has no option {unknown[0]!r}; {', '.join(sorted(self._asked))} are known")


class Reader:
    """The tensors of a state that were not looked at yet, and notes for the user."""

    def __init__(self, state: dict[str, Tensor], what: str) -> None:
        self.state, self.what = dict(state), what
        self.notes: list[str] = []

    def tensor(self, name: str, axes: int) -> Tensor:
        """Takes the tensor called ``name``, which must have ``axes`` axes, none of length 0."""
        if name not in self.state:
            others = ", ".join(sorted(self.state)[:6])
            raise FormatError("missing-key", f"{self.what} has no tensor {name!r}; it has {others or 'none left'}")
        found = self.state.pop(name)
        if found.ndim != axes or not found.numel():
            raise FormatError("shape", f"{self.what} has {name!r} of shape {tuple(found.shape)}; {axes} axes of at least 1 are needed")
        return found

    def projection(self) -> Projection | None:
        """project_in and project_out, or None where the widths are equal there and nothing is projected."""
        under = "project_in.0." if "project_in.0.weight" in self.state else "project_in."
        self.refuse_known()
        if under + "weight" not in self.state:
            return None
        weight_in, weight_out = self.tensor(under + "weight", 2), self.tensor("project_out.weight", 2)
        if under + "bias" not in self.state and "project_out.bias" not in self.state and weight_in.shape == weight_out.shape \
                and weight_in.shape[0] != weight_in.shape[1]:
            raise Unsupported(f"{self.what} has a project_in of cosine similarity, which normalises its input; only linear ones are read")
        if weight_in.shape != weight_out.mT.shape:
            raise FormatError("shape", f"{self.what} projects in by {tuple(weight_in.shape)} and out by {tuple(weight_out.shape)}")
        bias_in, bias_out = (self.tensor(name, 1) if name in self.state else torch.zeros(width) for name, width in
                             ((under + "bias", len(weight_in)), ("project_out.bias", len(weight_out))))
        if len(bias_in) != len(weight_in) or len(bias_out) != len(weight_out):
            raise FormatError("shape", f"{self.what} has projections with biases of {len(bias_in)} and {len(bias_out)} numbers")
        return Projection(weight_in, bias_in, weight_out, bias_out)

    def rotation(self, width: int) -> Tensor | None:
        """orthogonal_rot R (width, width): y R is quantized, and v R' given out."""
        if "orthogonal_rot" not in self.state:
            return None
        found = self.tensor("orthogonal_rot", 2)
        if found.shape != (width, width):
            raise FormatError("shape", f"{self.what} has an orthogonal_rot of shape {tuple(found.shape)}; {(width, width)} is needed")
        return found

    def layers(self, under: str) -> list[tuple[Tensor, Tensor | None]]:
        """Linear layers: ``under``weight, or ``under``0.weight, ``under``2.weight ... in ascending order; nothing else may be there."""
        pattern = re.compile(re.escape(under) + r"(?:(\d+)\.)?weight")
        numbers = sorted((int(found[1] or 0), name) for name in self.state if (found := pattern.fullmatch(name)))
        if not numbers or len(numbers) > 16:
            raise Unsupported(f"{self.what} has a {under[:-1]} of {len(numbers)} linear layers; 1..16 are read")
        made = []
        for _, name in numbers:
            bias = name.removesuffix("weight") + "bias"
            made.append((self.tensor(name, 2), self.tensor(bias, 1) if bias in self.state else None))
        return made

    def refuse_known(self) -> None:
        """Unsupported where the state shows something that has no exact equivalent."""
        for name in self.state:
            for pattern, reason in _REFUSED:
                if re.match(pattern, name):
                    raise Unsupported(f"{self.what} has {reason}; that has no exact equivalent here")

    def all_read(self) -> None:
        self.refuse_known()
        if self.state:
            raise Unsupported(f"{self.what} has tensors that this kind has no use for: {', '.join(sorted(self.state)[:6])}")


def around(quantizer: Quantizer, projected: Projection | None, rotation: Tensor | None, read: Reader) -> Quantizer:
    """``quantizer`` within its linear maps, if it has any. A rotation, one of each token's numbers, is multiplied into them in float64."""
    if projected is None and rotation is None:
        return quantizer
    width = quantizer.dim
    if projected is None:
        projected = Projection(torch.eye(width), torch.zeros(width), torch.eye(width), torch.zeros(width))
    if len(projected.weight_in) != width:
        raise FormatError("shape", f"{read.what} projects to {len(projected.weight_in)} numbers, but its codes have {width}")
    weight_in, bias_in, weight_out, bias_out = projected
    if rotation is not None:
        whole = torch.block_diag(*[rotation.double()] * (width // len(rotation)))
        weight_in, bias_in = (whole.mT @ weight_in.double()).float(), (whole.mT @ bias_in.double()).float()
        weight_out = (weight_out.double() @ whole).float()
        read.notes.append("the rotation was multiplied into linear maps, so values are equal to rounding")
    quantizer.restore({**quantizer.structure, "fitted": True})
    made = Affine(quantizer=quantizer, dim=weight_in.shape[1])
    with torch.no_grad():
        for name, value in (("weight_in", weight_in), ("bias_in", bias_in), ("weight_out", weight_out), ("bias_out", bias_out)):
            getattr(made, name).copy_(value)
    return made
