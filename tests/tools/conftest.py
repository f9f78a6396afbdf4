"""What the benchmarks' tests share."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """At these sizes threads wait for one another longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
