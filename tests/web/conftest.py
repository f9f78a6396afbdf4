"""A server of the session's tiny models."""

import pytest

from dalle.config import Serve
from dalle.web.shelf import load_shelf
from tests.web.running import running


@pytest.fixture(scope="session")
def limits(models):
    return Serve(model=str(models), chunk=4, precision="fp32", most_n=16, upload_mb=2)


@pytest.fixture(scope="session")
def shelf(limits):
    return load_shelf(limits)


@pytest.fixture(scope="session")
def shelved(shelf):
    return next(iter(shelf.values()))


@pytest.fixture(scope="session")
def server(shelf, limits):
    with running(shelf, limits) as it:
        yield it
