from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from codeword.nets.features import FeatureNet


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def g() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def training() -> ModuleType:
    """tools/train_features.py as a module."""
    path = Path(__file__).parents[2] / "tools" / "train_features.py"
    if not path.is_file():
        pytest.skip("tools/ is not here")
    spec = importlib.util.spec_from_file_location("train_features", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def classifier(training: ModuleType) -> torch.nn.Module:
    """An untrained classifier whose normalizations have seen some images."""
    torch.manual_seed(0)
    network = training.Classifier()
    for _ in range(3):
        network(torch.randn(16, 3, 16, 16))
    return network.eval()


@pytest.fixture(scope="session")
def features(classifier: torch.nn.Module) -> FeatureNet:
    return FeatureNet(classifier.tensors())


def image(g: torch.Generator, b: int = 2, channels: int = 3, size: int = 16) -> Tensor:
    return torch.rand(b, channels, size, size, generator=g)
