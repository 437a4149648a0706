"""What a user pays before the first vector is encoded."""

from __future__ import annotations

import subprocess
import sys

from codeword import catalog

SCRIPT = """
import sys
import numpy as np
import codeword
for spec, dim in {specs!r}:
    x = np.random.default_rng(0).normal(size=(40, dim)).astype(np.float32)
    quantizer = codeword.make(spec, dim)
    quantizer.decode(quantizer.fit(x).encode(x))
    assert "torch._dynamo" not in sys.modules, spec
"""


def test_encoding_imports_no_compiler() -> None:
    # Trained quantizers differentiate, and that goes through the registered ops.
    trained = ("simvq", "bridge_vq", "projected_vq", "multi_scale")
    specs = [(entry.example_spec, entry.example_dim) for entry in catalog.QUANTIZERS if entry.name not in trained]
    found = subprocess.run([sys.executable, "-c", SCRIPT.format(specs=specs)], capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
