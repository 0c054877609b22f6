"""What the balancer counts to be scaled by."""

import pytest

from core.balancing.counting import used_ratio


def backend(in_flight, capacity, healthy=True, state="up"):
    return {"in_flight": in_flight, "capacity": capacity, "healthy": healthy, "state": state}


@pytest.mark.parametrize(
    "backends, queued, ratio",
    [
        ([backend(1, 4), backend(2, 4)], 0, 0.375),
        ([backend(4, 4), backend(4, 4)], 7, 1.0),
        ([backend(5, 4)], 0, 1.0),  # its slots were made fewer while it worked
        ([backend(2, 4), backend(0, 4, healthy=False)], 0, 0.5),
        ([backend(2, 4), backend(3, 4, state="draining")], 0, 0.5),
        ([], 0, 0.0),
        ([], 1, 1.0),  # somebody waits for the first backend
    ],
)
def test_the_ratio_counts_the_slots_that_may_be_used(backends, queued, ratio):
    assert used_ratio(backends, queued) == ratio
