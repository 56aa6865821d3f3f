"""Every test starts from the same random numbers, on one thread: results do not depend on order or machine load."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
