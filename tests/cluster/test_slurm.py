"""Backends as the tasks of a Slurm array job, by the README's script, on a real cluster: no request is lost."""

import os
import secrets
import signal

import pytest
import slurm
from conftest import Program, call, wait_until
from crowd import Crowd

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.why_not()), reason=slurm.why_not() or "none"),
]
LONG = 120  # seconds for what Slurm takes its time for: a requeued job waits, a silent node is given up


@pytest.fixture(scope="module")
def cluster():
    made = slurm.Cluster(6)
    try:
        made.start()
        yield made
    finally:
        made.close()


class House:
    """A balancer, what it knows of its backends, and the job that they are."""

    def __init__(self, cluster, home):
        self.cluster, self.home = cluster, home
        folder = home / ".config" / "comeapi"
        folder.mkdir(parents=True)
        (folder / "admin-key").write_text(secrets.token_urlsafe(32) + "\n")
        options = ["--child", "--port=0", "--backends=0", "--admin-key=@%s" % (folder / "admin-key")]
        self.balancer = Program("balancer.py", *options, HOME=str(home))
        self.url = self.balancer.wait_for_event("listening")["url"]

    def submit(self, tasks, *options):
        """Submit the README's script as these tasks of an array."""
        text = slurm.script().replace("http://HEAD:9000", self.url)
        path = os.pathsep.join([os.path.dirname(os.sys.executable), os.environ["PATH"]])
        short = ["--array=" + tasks, "--cpus-per-task=1", *options]
        return self.cluster.submit(text, *short, HOME=str(self.home), PATH=path)

    def up(self):
        """Return the URLs of the backends that are up, by their names."""
        told = call(self.url + "/status").json["backends"]
        return {each["name"]: each["url"] for each in told if each["healthy"] and each["state"] != "draining"}

    def wait_for(self, count):
        """Wait until so many backends are up, and the balancer knows no other one; returns them."""
        def there():
            return len(self.up()) == count == call(self.url + "/status").json["total_backends"]

        self._wait(there)
        return self.up()

    def _wait(self, condition):
        try:
            wait_until(condition, LONG)
        except AssertionError:
            told = call(self.url + "/status").json["backends"]
            raise AssertionError("%s\n%s\n%s" % (told, self.cluster.jobs(), self.cluster.logs()))

    def wait_for_return(self, before, task):
        """Wait until a task has come back at another port; returns the backends that are up."""
        name = "comeapi-%d" % task
        self._wait(lambda: self.up().get(name, before[name]) != before[name])
        return self.wait_for(len(before))

    def close(self):
        self.cluster.cancel()
        wait_until(lambda: not self.cluster.jobs(), LONG)
        self.balancer.close()


@pytest.fixture
def house(cluster, tmp_path):
    made = House(cluster, tmp_path)
    yield made
    made.close()


def test_a_job_grows_and_shrinks_under_load(house, cluster):
    house.submit("1-1")
    house.wait_for(1)
    crowd = Crowd(house.url)
    crowd.wait_for()
    house.submit("2-6")
    assert sorted(house.wait_for(6)) == ["comeapi-%d" % task for task in range(1, 7)]
    crowd.wait_for()
    for task in (3, 4, 5, 6):
        cluster.cancel(cluster.jobs()[task][2])
    house.wait_for(2)
    crowd.wait_for()
    assert crowd.leave() == []


def test_tasks_that_are_killed_or_moved_come_back_and_the_controller_may_be_away(house, cluster):
    house.submit("1-4")
    house.wait_for(4)
    crowd = Crowd(house.url)
    crowd.wait_for()

    cluster.cancel("--signal=KILL", cluster.jobs()[4][2])  # for Slurm, who kills a whole job does not want it back
    before = house.wait_for(3)
    crowd.wait_for()

    cluster.cancel("--signal=KILL", cluster.jobs()[1][2] + ".0")  # the backend dies in the middle of its answers
    before = house.wait_for_return(before, 1)
    crowd.wait_for()

    _, node, number = cluster.jobs()[2]
    cluster.control("update", "nodename=" + node, "state=drain", "reason=test")  # what runs there goes on
    crowd.wait_for()
    assert house.up() == before
    cluster.control("requeue", number)  # and now moves
    before = house.wait_for_return(before, 2)
    assert cluster.jobs()[2][1] != node
    cluster.control("update", "nodename=" + node, "state=resume")

    cluster.kill("slurmctld")
    crowd.wait_for()
    assert house.up() == before
    cluster.start_controller()
    crowd.wait_for()
    assert house.up() == before
    assert crowd.leave() == []


def test_a_task_hands_its_answers_on_before_its_time_is_over(house, cluster):
    house.submit("1-1", "--time=2")
    house.submit("2-2")
    before = house.wait_for(2)
    crowd = Crowd(house.url)
    house.wait_for_return(before, 1)
    crowd.wait_for()
    assert crowd.leave() == []


def test_a_node_that_is_lost_is_forgotten_and_its_task_comes_back_elsewhere(house, cluster):
    house.submit("1-2")
    before = house.wait_for(2)
    crowd = Crowd(house.url)
    crowd.wait_for()
    _, node, _ = cluster.jobs()[1]
    pid = call(before["comeapi-1"] + "/health").json["pid"]
    os.kill(pid, signal.SIGSTOP)  # nothing on this node answers any more
    cluster.kill(node)
    try:
        wait_until(lambda: "comeapi-1" not in house.up(), LONG)
        after = house.wait_for_return(before, 1)
        assert after["comeapi-2"] == before["comeapi-2"] and cluster.jobs()[1][1] != node
    finally:
        os.kill(pid, signal.SIGKILL)
    crowd.wait_for()
    assert crowd.leave() == []
