"""Processes that find one another, or do not."""

import re

import pytest

from tests.processes import begin_alone, free_port

_SCRIPT = """
import os, sys
from dalle.cluster.topology import joined
place = {"RANK": sys.argv[1], "LOCAL_RANK": sys.argv[1], "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2]}
os.environ.update(place)
try:
    with joined(silence_limit_s=0.5):
        print("met")
except ValueError as error:
    print(error, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_without_the_other_it_is_said_where_it_was_awaited(rank):
    """The first process, which nobody looks for, and the second, which finds no first."""
    port = free_port()
    told, complaint = begin_alone(_SCRIPT, str(rank), str(port)).communicate(timeout=60)
    wanted = rf"the 2 processes did not all meet at 127\.0\.0\.1:{port} \(.+\); see whether another one .*\n"
    assert re.fullmatch(wanted, told), (told, complaint[-1000:])
