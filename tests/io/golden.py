"""Makes the golden files: one quantizer and its codes for each entry of the catalog, as this release writes them.

    PYTHONPATH=src python tests/io/golden.py            adds files for new entries

Existing ones are never overwritten: they are what releases have written, and must be readable for ever. A change of the format is a new
format version and a new folder. ``expected.json`` beside them holds what they must decode to: the first values of ``decode`` in full
precision, fingerprints, and the files' digests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HOME = Path(__file__).parent / "golden" / "format-1"
ROWS = 9


def rows(dim: int) -> np.ndarray:
    """Rows that are the same everywhere: multiples of 1/64 from a small integer recurrence."""
    state, values = 12345, []
    for _ in range(ROWS * dim):
        state = (1103515245 * state + 12345) % (1 << 31)
        values.append(((state >> 16) % 257 - 128) / 64)
    return np.array(values, dtype=np.float32).reshape(ROWS, dim)


def expectation(quantizer: Any, codes: Any) -> dict[str, Any]:
    """What a reader must find in the pair of files."""
    from codeword.io import objects
    decoded = np.asarray(quantizer.decode(codes))
    return {"class": type(quantizer).__name__, "fingerprint": objects.fingerprint(quantizer), "shape": list(decoded.shape),
            "indices": [int(i) for i in np.asarray(codes.indices).reshape(-1)[:24]],
            "side": None if codes.side is None else [float(f) for f in np.asarray(codes.side).reshape(-1)[:6]],
            "decoded": [float(f) for f in decoded.reshape(-1)[:24]]}


def make(home: Path = HOME) -> list[str]:
    """Write what is missing; returns the names of the entries added."""
    from codeword import catalog
    from codeword.io import files, objects, tensors
    home.mkdir(parents=True, exist_ok=True)
    record = home / "expected.json"
    expected = json.loads(record.read_text()) if record.exists() else {}
    added = []
    for entry in catalog.QUANTIZERS:
        if entry.name in expected:
            continue
        paths = [home / f"{entry.name}.cw", home / f"{entry.name}.codes.cw"]
        if any(path.exists() for path in paths):
            raise SystemExit(f"{paths[0]} exists but is not in {record}; golden files are never overwritten")
        quantizer = catalog.make(entry.example_spec, entry.example_dim).fit(rows(entry.example_dim))
        codes = quantizer.encode(rows(entry.example_dim))
        quantizer.save(paths[0])
        objects.save_codes(paths[1], codes, quantizer)
        expected[entry.name] = {**expectation(quantizer, codes), "digests": [tensors.read_header(path).digest for path in paths]}
        added.append(entry.name)
    if added:
        files.write_file(record, [(json.dumps(expected, indent=1, sort_keys=True) + "\n").encode()])
    return added


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
    print("added:", ", ".join(make()) or "nothing")
