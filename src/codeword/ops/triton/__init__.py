"""Triton kernels for CUDA: ``nearest`` and ``segment_sum``, bit-equal to the definitions in ``ops/reference.py``.

Nothing imports this package before ``dispatch`` has chosen it for a tensor; without a GPU the same kernels run in Triton's interpreter
(``TRITON_INTERPRET=1`` set before the first import), which is how they are tested.
"""

from __future__ import annotations

from codeword.ops.triton.nearest import nearest
from codeword.ops.triton.segment_sum import gathered, segment_add

__all__ = ["gathered", "nearest", "segment_add"]
