"""Spec strings: what they mean, and that a slip of the pen is an error, never another quantizer."""

from __future__ import annotations

import pytest

import codeword
from codeword import catalog
from codeword.errors import CodewordError, Unsupported
from codeword.ops import dispatch


def test_a_spec_means_the_constructor_or_the_dial():
    assert codeword.make("pq:bits=2", 16).config == codeword.PQ.for_bits(16, 2).config
    assert codeword.make("vq:codebook_size=8,seed=3", 4).config["seed"] == 3
    nested = codeword.make("residual(vq:codebook_size=4;rotated(vq:codebook_size=8))", 4)
    assert [part.name for part in nested.quantizers] == ["vq", "rotated"]


@pytest.mark.parametrize("spec", [
    "residual(vq:codebook_size=4;rotated(vq:codebook_size=4)", "residual(vq:codebook_size=4))", "residual)vq(", "pq:bits=2,bits=4",
    "pq:bits=2,", "pq:=2", "pq:bits", "", "nothing:bits=2", "pq(vq:bits=2)", "rotated(pq:bits=2)x", "pq:bogus=3,bits=2",
])
def test_slips_are_errors(spec: str):
    with pytest.raises(CodewordError):
        catalog.make(spec, 16)


def test_an_unknown_implementation_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CODEWORD_OPS", "triton")
    with pytest.raises(Unsupported, match="triton"):
        dispatch.choice("nearest")
    monkeypatch.setenv("CODEWORD_OPS", "native")
    with pytest.raises(Unsupported, match="CPU"):
        dispatch.choice("nearest", "cuda")
