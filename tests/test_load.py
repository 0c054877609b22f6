"""What the balancer costs, measured as tests/load.py does. The bounds are wide: timings need a quiet machine."""

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


def test_a_kept_alive_client_waits_hardly_longer(setup):
    figures = load.measure("latency", setup)
    assert figures["added_p50_ms"] <= 1.0 and figures["added_p99_ms"] <= 10.0, figures


def test_sixteen_clients_get_thousands_of_answers_a_second(setup):
    figures = load.measure("rate", setup)
    assert figures["errors"] == 0 and figures["requests_per_second"] >= 1000, figures


def test_bursts_of_new_connections_cost_nobody_an_answer(setup):
    assert [each["errors"] for each in load.measure("burst", setup)["bursts"]] == [0, 0]


def test_a_thousand_streams_at_once_come_whole_in_order_and_in_time(setup):
    figures = load.measure("streams", setup)
    assert figures["lost_streams"] == 0 and figures["events"] == 150000, figures
    assert figures["balancer_megabytes"] <= 300 and figures["delay_p99_ms"] <= 2000, figures
