"""What the page costs with a real service: until a browser has painted it, and for the balancer while many watch.

    python -m pytest -m slow -s tests/page/test_cost.py     prints the figures
"""

import os
import re
import urllib.request

import pytest
from conftest import PATIENCE, Program, free_ports, in_parallel, prompt_once

from page.browsing import see

pytestmark = pytest.mark.slow
TABS = 50
SECONDS = 30
PAINT = """() => new Promise((resolve) => new PerformanceObserver((list) => {
  const [entry] = list.getEntriesByName("first-contentful-paint");
  if (entry) resolve(entry.startTime / 1000);
}).observe({ type: "paint", buffered: true }))"""


@pytest.fixture(scope="module")
def service():
    """The whole service with two backends: its URL, and the number of the balancer's process."""
    port = free_ports(3)
    program = Program("comeapi.py", "--base-port", port, "--port", port + 2, "--backends", 2)
    try:
        line = program.wait_for_line("🚀")
        yield "http://127.0.0.1:%d" % (port + 2), int(re.search(r"PID (\d+)", line).group(1))
    finally:
        program.close()


def test_the_first_paint_of_a_real_service_comes_within_a_second(service, visit):
    painted = []

    def paint():
        page = visit(service[0])
        painted.append(page.evaluate(PAINT))
        see(page.locator("#headline"), "Both backends are up.")
        return painted[-1]

    prompt_once(paint, 1.0)
    paint()
    print("\nfirst paint after %s s" % ", ".join("%.2f" % seconds for seconds in painted))


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc: a process' processor time is unknown")
def test_fifty_live_feeds_cost_the_balancer_less_than_a_twentieth_of_a_core(service):
    """The feeds alone, read as tabs read them: to the balancer, a tab is no more."""
    url, pid = service
    feeds = [urllib.request.urlopen(url + "/events", timeout=PATIENCE) for _ in range(TABS)]
    try:
        assert in_parallel(lambda feed: read(feed, 2), feeds) == [2] * TABS
        before = seconds_on_the_processor(pid)
        assert in_parallel(lambda feed: read(feed, SECONDS), feeds) == [SECONDS] * TABS
        share = (seconds_on_the_processor(pid) - before) / SECONDS
    finally:
        for feed in feeds:
            feed.close()
    print("\n%d feeds cost the balancer %.1f %% of a core" % (TABS, share * 100))
    assert share < 0.05


def read(feed, count):
    """Read so many events of the present, one a second. Returns their number; fewer where the feed ended."""
    found = 0
    for line in feed:
        found += line == b"event: now\n"
        if found == count:
            break
    return found


def seconds_on_the_processor(pid):
    with open("/proc/%d/stat" % pid) as stat:
        user, system = stat.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
