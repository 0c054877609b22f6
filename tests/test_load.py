"""Crowds at the balancer, as tests/load.py makes them. How fast it is, that tells; here counts that nothing is lost."""

import sys

import load
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory and threads are read from /proc"),
]


@pytest.fixture
def setup():
    setup = load.Setup()
    yield setup
    setup.close()


def test_bursts_of_new_connections_cost_nobody_an_answer(setup):
    assert [each["errors"] for each in load.measure("burst", setup)["bursts"]] == [0, 0]


def test_a_thousand_streams_at_once_come_whole_and_in_order(setup):
    figures = load.measure("streams", setup)
    assert figures["lost_streams"] == 0 and figures["events"] == 150000, figures
    assert figures["balancer_megabytes"] <= 300, figures
