"""What SAQ searches with: factors of rows and numbers of queries for ``ops.segment_blocks``.

With c a list's centroid, m the mean, c' = c + m, y = A (x - c') and z = A (q - m) (ip: A q), a row's distance is estimated as

    |q - x|^2 ~ |q-c|^2 - 2<q,m>  +  2<c,m> + |m|^2 + |y|^2  +  sum_s (2 kappa_s <x_s, (A c)_s> - 2 kappa_s <x_s, z_s>)
     -<q, x>  ~  -<q,c> -  <q,m>                             +  sum_s (                          -   kappa_s <x_s, z_s>)

so one prepared query serves every list. The top bits alone estimate the same with the signs in place of x_s, about the refined value:

    kappa1_s = kappa_s |x_s|^2 / <signs, x_s>            misses it by noise of length kappa1_s sin_s sqrt(n_s)/2, at random
    sin_s^2 = SIGN_NOISE[bits]: of the angle between the signs and a grid code of a rotated segment

and before its code is read a segment's <y_s, w_s> is unknown with mean 0 and variance |w_s|^2 v_s / n_s (v_s: the segment's share of the
data's variance, spread evenly by its rotation). w = A (q - c'), of which a query knows only the length: w_s takes its share of that,
the query's own or the data's, whichever is larger. For ip w = A q, exactly. Errors of segments are independent: variances add up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codeword.ops import segment_blocks
from codeword.ops.segment_blocks import Plan
from codeword.parts.rows import dot

SIGN_NOISE = (0.0, 0.0, 0.2436, 0.3217, 0.3495, 0.3581, 0.3609, 0.3619, 0.3622, 0.3623, 0.3623, 0.3623, 0.3623, 0.3623)
"""By bits: 1 - cos^2 between a code and its signs, measured on Gaussian vectors of width 512."""


def row_factors(indices: Tensor, bits: int, kappa: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """float64 (2, rows) each: add and rescale of the top bits and of all bits of a segment's codes (rows, n); ``turned`` A c."""
    odd = 2 * indices - ((1 << bits) - 1)  # 2 x_, odd integers
    full = _add_rescale(odd.double() / 2, kappa, turned)
    if bits == 1:
        return full, full
    signs = torch.where(odd > 0, 0.5, -0.5).double()
    square, overlap = odd.square().sum(1).double() / 4, odd.abs().sum(1).double() / 4
    return _add_rescale(signs, kappa * square / overlap, turned), full


def _add_rescale(points: Tensor, kappa: Tensor, turned: Tensor) -> Tensor:
    return torch.stack((2 * kappa * dot(points, turned), -2 * kappa))


def constants_of(plan: Plan, variances: Tensor, slack: float, deviations: float | None) -> Tensor:
    """float64 (3, S) for ``segment_blocks.prepare``. ``variances`` float64 (S,) sums v_s; ``slack``, ``deviations``: standard deviations of
    the bounds that read bits and of the one that reads none (None: it is not used)."""
    n = torch.tensor([length for length, _ in plan], dtype=torch.float64, device=variances.device)
    noise = torch.tensor([SIGN_NOISE[bits] for _, bits in plan], dtype=torch.float64, device=variances.device)
    noise = slack**2 * noise * n / (4 * (n - 1).clamp(min=1))
    unseen = (2 * deviations)**2 * variances / n if deviations is not None else torch.full_like(n, math.inf)
    floors = variances / segment_blocks.total(variances).clamp(min=1e-300)
    return torch.stack((floors, noise, unseen))
