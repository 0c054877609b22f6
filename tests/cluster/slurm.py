"""A Slurm cluster of one machine, for the tests: munged, slurmctld, and a slurmd for each of several nodes.

Everything is in a temporary folder, and ends by its own process' number. Root is needed, and Debian's slurmctld,
slurmd, slurm-client and munge.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile

from conftest import PATIENCE, ROOT, free_ports, wait_until

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
_CONFIG = """
ClusterName=comeapi
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=10
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not():
    """Return why there can be no cluster here; an empty text where there can."""
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing:
        return "Slurm is not installed: no %s" % ", ".join(missing)
    if not hasattr(os, "geteuid") or os.geteuid():
        return "only root can run Slurm's daemons"
    return ""


def script():
    """Return the batch script of core/balancing/deploy/README.md."""
    with open(os.path.join(ROOT, "core", "balancing", "deploy", "README.md"), encoding="utf-8") as text:
        (found,) = [each for each in re.findall(r"```bash\n(.*?)```", text.read(), re.S) if "#SBATCH" in each]
    return found


class Cluster:
    """A running cluster with nodes node1, node2, … of one processor each."""

    def __init__(self, nodes):
        self.folder = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")  # a socket's path must be short
        os.chmod(self.folder, 0o755)
        self.names = ["node%d" % number for number in range(1, nodes + 1)]
        ports = free_ports(nodes + 1)
        host = socket.gethostname().split(".")[0]
        lines = [
            "NodeName=%s NodeHostname=%s NodeAddr=127.0.0.1 Port=%d CPUs=1 State=UNKNOWN" % (name, host, ports + number)
            for number, name in enumerate(self.names, 1)
        ]
        self.config = os.path.join(self.folder, "slurm.conf")
        with open(self.config, "w") as file:
            file.write(_CONFIG.format(host=host, port=ports, folder=self.folder, nodes="\n".join(lines)))
        os.mkdir(os.path.join(self.folder, "state"))
        os.mkdir(os.path.join(self.folder, "spool"))
        self.environment = dict(os.environ, SLURM_CONF=self.config)
        self._daemons = {}

    def start(self):
        """Start all daemons; wait until all nodes are idle."""
        key = os.path.join(self.folder, "munge.key")
        with open(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(secrets.token_bytes(1024))
        own = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munge.seed"}
        places = ["--%s=%s" % (option, os.path.join(self.folder, name)) for option, name in own.items()]
        self._run("munged", "munged", "--force", "--foreground", "--key-file=" + key, *places)
        wait_until(lambda: os.path.exists(os.path.join(self.folder, "munge.socket")))
        self.start_controller()
        for name in self.names:
            self._run(name, "slurmd", "-D", "-N", name, "-f", self.config)
        wait_until(lambda: self._ask("sinfo", "-h", "-o", "%T", "-N").split() == ["idle"] * len(self.names))

    def start_controller(self):
        """Start slurmctld; wait until it answers."""
        self._run("slurmctld", "slurmctld", "-D", "-f", self.config)
        ping = ["scontrol", "ping"]
        wait_until(lambda: not subprocess.run(ping, env=self.environment, stdout=subprocess.DEVNULL).returncode)

    def _run(self, name, *command):
        with open(os.path.join(self.folder, name + ".out"), "ab") as log:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self, name):
        """End one daemon, politely; its jobs go on."""
        daemon = self._daemons.pop(name)
        daemon.terminate()
        daemon.wait(PATIENCE)

    def close(self):
        """End the jobs, then all daemons, then what is left: a slurmstepd whose slurmd has gone tries for minutes."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.cancel()
            wait_until(lambda: not self.jobs(), 30)
        for name in reversed(list(self._daemons)):
            self.kill(name)
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes())
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self):
        """Return the numbers of all processes that are this cluster's, by their environment or the files they hold."""
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and self._is_ours("/proc/" + name)]

    def _is_ours(self, process):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            with open(process + "/environ", "rb") as file:
                if ("SLURM_CONF=" + self.config).encode() in file.read().split(b"\0"):
                    return True
            links = [os.readlink("%s/fd/%s" % (process, number)) for number in os.listdir(process + "/fd")]
            return any(link.startswith(self.folder + "/") for link in links)
        return False

    # ---- jobs

    def _ask(self, *command):
        done = subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE
        )
        said = done.stdout.decode("utf-8", "replace")
        assert done.returncode == 0, said
        return said

    def submit(self, text, *options, **environment):
        """Submit a batch script; returns the job's number."""
        path = os.path.join(self.folder, "job.sh")
        with open(path, "w") as file:
            file.write(text)
        output = "--output=" + os.path.join(self.folder, "job-%a.log")
        done = subprocess.run(
            ["sbatch", "--parsable", output, *options, path], cwd=ROOT, timeout=PATIENCE,
            env=dict(self.environment, **environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return int(done.stdout)

    def jobs(self):
        """Return the tasks of all arrays that are not over, by their numbers: (state, node, number as ARRAY_TASK).

        The last task has its array's number, too: by that alone, all tasks would be meant.
        """
        lines = self._ask("squeue", "-h", "-r", "-o", "%K %T %N %F_%K").splitlines()
        found = {}
        for line in lines:
            task, state, *node, number = line.split(" ")
            found[int(task)] = (state, "".join(node), number)
        return found

    def cancel(self, *arguments):
        """Call scancel; of all jobs where nothing else is said."""
        self._ask("scancel", *(arguments or ("--user=root",)))

    def control(self, *arguments):
        """Call scontrol; returns what it says."""
        return self._ask("scontrol", *arguments)

    def logs(self):
        """Return the end of what the jobs and the controller have written."""
        found = ""
        for name in sorted(os.listdir(self.folder)):
            if name.startswith("job-") or name == "slurmctld.log":
                with open(os.path.join(self.folder, name), encoding="utf-8", errors="replace") as file:
                    found += "---- %s\n%s" % (name, file.read()[-3000:])
        return found
