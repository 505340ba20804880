"""A Slurm of one node on loopback: munge, controller and worker from the distribution, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={worker_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Slurm:
    """Start the three daemons; `stop` ends them.

    Args:
        folder: Where configuration, state and logs go.
    """

    def __init__(self, folder: Path) -> None:
        lacking = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
        assert not lacking, f"{', '.join(lacking)} not found: apt-get install --no-install-recommends slurm-wlm munge"
        assert os.geteuid() == 0, "Slurm's daemons are started as root"
        self._folder, host = folder, socket.gethostname()
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        ports = {"controller_port": free_port(), "worker_port": free_port()}
        (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, **ports))
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        munge = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed",
                 "log-file": "munge.log"}  # fmt: skip
        options = [f"--{name}={folder / file}" for name, file in munge.items()]
        self._daemons: list[subprocess.Popen] = []
        self._start("/usr/sbin/munged", "--foreground", "--force", *options)
        self._until(lambda: (folder / "munge.socket").exists(), "munge.log")
        self._start("/usr/sbin/slurmctld", "-D", "-c")
        self._start("/usr/sbin/slurmd", "-D")
        self._until(lambda: " idle" in self.ask("sinfo", "--noheader", "--format=%P %T", check=False), "slurmctld.log")

    def _start(self, *command: str) -> None:
        with open(self._folder / f"{Path(command[0]).name}.out", "w") as log:
            self._daemons.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _until(self, condition, log: str) -> None:
        end = time.monotonic() + 90
        while not condition():
            said = "\n".join(f"{p.name}: {p.read_text()[-1500:]}" for p in self._folder.glob("*.[lo][ou]*"))
            assert time.monotonic() < end, f"no sign of Slurm, see {log}:\n{said}"
            time.sleep(0.3)

    def ask(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands and give what it prints."""
        return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60).stdout

    def states(self) -> dict[str, str]:
        """Give the states of all tasks in the queue."""
        lines = self.ask("squeue", "--noheader", "--array", "--format=%F_%K %T").splitlines()
        return dict(line.split() for line in lines)

    def stop(self) -> None:
        self.ask("scancel", "--user=root", check=False)
        time.sleep(1)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
        os.environ.pop("SLURM_CONF", None)
