"""The Hub from machines without a network, and from one where something else answers."""

import threading
import time

import pytest

from dalle.machine.network import hub_finding


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.mark.parametrize("status", [200, 307])
def test_it_is_reached(status):
    found = hub_finding(lambda patience_s: status)
    assert found.verdict == "ok" and "is reached" in found.fact


@pytest.mark.parametrize(
    "error", [ConnectionError("refused"), OSError("no route"), RuntimeError("of the client's own")]
)
def test_without_a_network_it_is_a_warning(error):
    def ask(patience_s):
        raise error

    found = hub_finding(ask)
    assert found.verdict == "warn" and type(error).__name__ in found.fact and "HF_ENDPOINT" in found.advice


def test_a_page_to_log_in_to_a_network_is_not_it():
    found = hub_finding(lambda patience_s: 511)
    assert found.verdict == "warn" and "511" in found.fact


def test_what_hangs_is_left_alone():
    let_go = threading.Event()
    began_s = time.monotonic()
    found = hub_finding(lambda patience_s: let_go.wait(60), patience_s=0.2)
    took_s = time.monotonic() - began_s
    let_go.set()
    assert found.verdict == "warn" and "did not answer" in found.fact
    assert took_s < 20  # and not 60; a busy machine may take seconds to go on


def test_the_time_is_handed_on():
    given = []
    hub_finding(lambda patience_s: given.append(patience_s) or 200)
    assert given == [3.0]


def test_who_is_offline_on_purpose_is_not_asked(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = hub_finding(lambda patience_s: pytest.fail("asked"))
    assert found.verdict == "ok" and "HF_HUB_OFFLINE" in found.fact
