"""One thread for every test: unpinned torch processes on few cores slow each other many times."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--on", default="cuda", help="where tests that need a GPU compute")


@pytest.fixture
def device(request):
    """Where a test marked with ``gpu`` computes."""
    wanted = request.config.getoption("--on")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return wanted
