"""Spec strings: what is refused is told in the catalog's words, not in Python's."""

from __future__ import annotations

from typing import Any

import pytest

from codeword import catalog
from codeword.errors import CodewordError


@pytest.mark.parametrize(("spec", "message"), [
    ("pq", "pq needs num_codebooks or bits, e.g. pq:bits=2"),
    ("pq:bogus=1", "pq has no option 'bogus'; it takes bits, "),
    ("pq:dim=4,bits=2", "pq has no option 'dim'"),
    ("pq:bits=2,codebook_size=16", "pq chooses 'codebook_size' by bits; it takes bits, iterations, seed"),
    ("product(pq:bits=2):bits=2", "product has no option 'bits'; it takes groups, shared"),
    ("product:groups=2", "product wraps other quantizers; put one in parentheses, e.g. product(pq:bits=2)"),
    ("pq(vq)", "'pq' takes no inner quantizer"),
    ("rotated(pq:bogus=1)", "pq has no option 'bogus'"),
    ("rotated(nothing)", "unknown quantizer 'nothing'"),
    (7, "a quantizer is named by a spec string such as 'pq:bits=2'; int was given"),
    (None, "NoneType was given"),
])
def test_what_is_refused_and_how(spec: Any, message: str) -> None:
    for refuse in (lambda: catalog.make(spec, 16), lambda: catalog.check(spec)):
        with pytest.raises(CodewordError) as caught:
            refuse()
        assert message in str(caught.value) and "__init__" not in str(caught.value)


@pytest.mark.parametrize(("spec", "message"), [
    ("pq:num_codebooks=many", "num_codebooks='many'; an integer is needed"), ("pq:bits=two", "bits='two'; a finite number is needed"),
    ("rabitq:fast=3", "fast=3; true or false is needed"), ("fsq:grid=8", "grid=8; a list of integers is needed"),
    ("product(pq:bits=2):groups=many", "'product(pq:bits=2):groups=many' has a value that product cannot use"),
])
def test_values_of_the_wrong_kind(spec: str, message: str) -> None:
    with pytest.raises(CodewordError) as caught:
        catalog.make(spec, 16)
    assert message in str(caught.value)


@pytest.mark.parametrize(("spec", "dim", "advice"), [
    ("vq:bits=2", 384, "product(vq:bits=2):groups=96"), ("product(vq:bits=2)", 384, "product(vq:bits=2):groups=96"),
    ("simvq:bits=4", 7, "product(simvq:bits=4):groups=7"), ("vq:bits=0.5", 40, "product(vq:bits=0.5):groups=2"),
    ("vq:bits=1.5", 15, "vq:codebook_size=256"), ("vq:bits=0.01", 16, "vq:codebook_size=256"),
])
def test_advice_for_a_codebook_too_large_works(spec: str, dim: int, advice: str) -> None:
    with pytest.raises(CodewordError) as caught:
        catalog.make(spec, dim)
    assert advice in str(caught.value)
    made = catalog.make(advice, dim)
    assert "codebook_size" in advice or made.nominal_bits == float(spec.partition("bits=")[2].rstrip(")"))


def test_every_example_passes_the_check_and_is_built() -> None:
    for entry in catalog.QUANTIZERS:
        catalog.check(entry.example_spec)
        assert catalog.make(entry.example_spec, entry.example_dim).dim == entry.example_dim
    for spec in ("vq:codebook_size=8,revival=none", "vq:codebook_size=8,revival=0.5", "pvq:bits=2",
                 "product(vq:bits=1;pq:bits=2):groups=2"):
        catalog.check(spec)
        catalog.make(spec, 16)
