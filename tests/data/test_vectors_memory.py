"""Files larger than the memory one wants to give them: reading takes a block, not the file."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from codeword.data import open_vectors

MIB = 1 << 20


def test_blocks_and_samples_of_shards_take_little_memory(tmp_path: Path) -> None:
    shard = np.random.default_rng(0).normal(size=(16_384, 128)).astype(np.float32)  # 8 MiB
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", shard)
    total = 0.0
    tracemalloc.start()
    v = open_vectors(tmp_path)
    for start, block in v.blocks(1000):
        v.check_finite(block, start)
        total += float(block.sum(dtype=np.float64))
    v.sample(2000, seed=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert v.nbytes == 64 * MIB and peak < 4 * MIB
    np.testing.assert_allclose(total, 8 * shard.sum(dtype=np.float64), rtol=1e-6)


def test_parquet_streams_batches(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet
    x = np.random.default_rng(0).normal(size=(65_536, 128)).astype(np.float32)  # 32 MiB
    schema = pa.schema([("v", pa.list_(pa.float32(), 128))])
    with parquet.ParquetWriter(tmp_path / "x.parquet", schema, compression="NONE", use_dictionary=False) as writer:
        for part in np.array_split(x, 16):
            writer.write_table(pa.table({"v": pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), 128)}))
    before = pa.total_allocated_bytes()
    v = open_vectors(tmp_path / "x.parquet")
    del x
    peak = 0
    tracemalloc.start()
    for _ in v.blocks(1000):
        peak = max(peak, pa.total_allocated_bytes() - before)
    _, own = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert v.shape == (65_536, 128) and peak + own < 24 * MIB
