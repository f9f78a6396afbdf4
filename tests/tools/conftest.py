"""What the benchmarks' tests share."""

import pytest

from tests.conftest import threads


@pytest.fixture
def one_thread():
    """At these sizes threads wait for one another longer than they compute."""
    with threads(1):
        yield
