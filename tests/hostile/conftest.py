"""The servers under attack as fixtures, and the figure: how many hostile cases were tried, how many ended right."""

import pytest

from hostile.enemy import FUZZED, Fort, small_generate

HERE = "hostile/"
IMPATIENT = ("--header-timeout", 1.5, "--body-timeout", 2)
_figures = {"tried": 0, "right": 0, "slowest": 0.0, "which": ""}


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """A backend under attack; after each case it must generate."""
    arguments = ("--child", "--port", 0, "--threads", 1, "--slots", 4, "--ctx-size", 512) + IMPATIENT
    arguments += ("--responses-dir", tmp_path_factory.mktemp("kept"))
    fort = Fort("backend.py", arguments, small_generate, "ready")
    yield fort
    fort.close()


@pytest.fixture(scope="session")
def front(engine):
    """A balancer under attack, in front of that backend; after each case it must relay."""
    arguments = ("--child", "--port", 0, "--backend", "http://127.0.0.1:%d" % engine.port) + IMPATIENT
    fort = Fort("balancer.py", arguments, small_generate, "up")
    yield fort
    fort.close()


@pytest.fixture(params=["backend", "balancer"])
def target(request):
    """Each of the two, as (where it is attacked, all that must survive)."""
    engine = request.getfixturevalue("engine")
    if request.param == "backend":
        return engine, (engine,)
    front = request.getfixturevalue("front")
    return front, (front, engine)


@pytest.fixture
def alone(engine):
    """The backend alone, in the same form: for what the balancer only passes on."""
    return engine, (engine,)


def pytest_runtest_logreport(report):
    if HERE in report.nodeid and (report.when == "call" or (report.when == "setup" and report.failed)):
        _figures["tried"] += not report.skipped
        _figures["right"] += report.passed
        if report.duration > _figures["slowest"]:
            _figures.update(slowest=report.duration, which=report.nodeid.partition(HERE)[2])


def pytest_terminal_summary(terminalreporter):
    if _figures["tried"]:
        terminalreporter.write_line(
            "hostile: %(tried)d cases tried, %(right)d right, the slowest took %(slowest).2f s (%(which)s)" % _figures
        )
    if FUZZED["cases"]:
        terminalreporter.write_line("fuzz: %(cases)d cases tried, the slowest took %(slowest).2f s" % FUZZED)
