from __future__ import annotations

import pytest
import torch
from exceptions import EXCEPTIONS
from subjects import VARIANTS, Subject

from codeword import catalog


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        subjects = [Subject(entry.name, variant) for entry in catalog.QUANTIZERS for variant in ("", *VARIANTS.get(entry.name, ()))]
        metafunc.parametrize("subject", subjects, ids=["-".join(filter(None, subject)) for subject in subjects])


@pytest.fixture(autouse=True)
def declared_exception(request: pytest.FixtureRequest) -> None:
    if "subject" in request.fixturenames:
        reason = EXCEPTIONS.get((request.function.__name__, request.getfixturevalue("subject").name))
        if reason:
            pytest.skip(reason)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny arrays gain nothing from a second thread and lose much to waiting for it on a busy machine; ``threads`` asks for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads():
    """Sets torch's number of threads; restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
