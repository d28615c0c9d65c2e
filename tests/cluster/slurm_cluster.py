"""A Slurm of two nodes on this machine, for the time of a test: Debian's packages slurm-wlm and munge."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

CONFIG = Path("/etc/slurm/slurm.conf")  # the executor plugin takes SLURM_CONF away from its jobs
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = ("n1", "n2")
PATIENCE = 60.0  # seconds that daemons may take


def absent_reason() -> str:
    """Why no Slurm can be started here; "" where one can."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        return f"no {missing[0]} here: apt-get install slurm-wlm munge"
    if os.geteuid():
        return f"only root may write {CONFIG}"
    if CONFIG.exists() and not (CONFIG.is_symlink() and "is DOWN" in slurm("scontrol", "ping")):  # of a killed test
        return f"{CONFIG} is there: this machine has a Slurm of its own"
    return ""


class SlurmCluster:
    """Daemons whose files lie in `folder`, on free ports of the loopback device."""

    def __init__(self, folder: Path):
        self.folder, self.daemons = folder, dict[str, subprocess.Popen]()

    def start(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        ports = dict(zip(("port", *(f"port_{node}" for node in NODES)), free_ports(1 + len(NODES))))
        template = Path(__file__).with_name("slurm.conf").read_text()
        config = self.folder / "slurm.conf"
        config.write_text(template.format(folder=self.folder, **ports))
        CONFIG.unlink(missing_ok=True)
        CONFIG.symlink_to(config)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        files = (f"--{name}={self.folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file"))
        self.launch("munged", "munged", "--foreground", "--force", f"--key-file={key}", *files)
        self.launch("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.restore_power(node)
        self.wait_for_states(dict.fromkeys(NODES, "idle"))

    def launch(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "a") as said:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def restore_power(self, node: str) -> None:
        self.launch(node, "slurmd", "-D", "-N", node)

    def wait_for_states(self, states: Mapping[str, str]) -> None:
        """Until nodes are in these states, as `sinfo` calls them."""
        last = time.monotonic() + PATIENCE
        while not states.items() <= node_states().items():
            if time.monotonic() > last:
                raise TimeoutError("\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log")))
            time.sleep(0.1)

    def cut_power(self, node: str) -> None:
        """Kills the daemon of a node and all that runs there."""
        for process in self.node_processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.daemons.pop(node).wait()

    def node_processes(self, node: str) -> list[int]:
        """A node's daemons, which write its log, and its jobs."""
        log, mark = str(self.folder / f"{node}.log"), f"SLURMD_NODENAME={node}"
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                files = {os.readlink(file) for file in path.glob("fd/*")}
                if log in files or mark in os.fsdecode((path / "environ").read_bytes()).split("\0"):
                    found.append(int(path.name))
        return found

    def stop(self) -> None:
        for node in NODES:
            if node in self.daemons:
                self.cut_power(node)
        for process in self.daemons.values():
            process.terminate()
            process.wait()
        CONFIG.unlink(missing_ok=True)


def slurm(*command: str) -> str:
    """What one of Slurm's commands says; "" if it fails."""
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE).stdout


def node_states() -> dict[str, str]:
    """{node: state}; empty while nobody answers."""
    return dict(line.split() for line in slurm("sinfo", "-h", "-N", "-o", "%N %T").splitlines())


def job_process(folder: Path, rule: str) -> tuple[int, str]:
    """(process, node) of the script of a rule that runs for a workflow in `folder`."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            script = os.fsdecode((path / "cmdline").read_bytes()).split("\0")[-2:][0]
            if script.startswith(f"{folder}/.snakemake/scripts/") and script.endswith(f".{rule}.py"):
                variables = os.fsdecode((path / "environ").read_bytes()).split("\0")
                (node,) = (each.partition("=")[2] for each in variables if each.startswith("SLURMD_NODENAME="))
                return int(path.name), node
    raise LookupError(f"no job of {rule}")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
