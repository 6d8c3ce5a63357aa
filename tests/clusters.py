"""Real clusters for tests, or the reason why there is none: a Ray of two nodes, a Slurm of one."""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "cluster"
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # no open door while tests run
PATIENCE = 60.0  # seconds until a start that should take a few is given up


def wait_until(condition: Callable[[], object], words: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {PATIENCE:.0f} s: {words}"
        time.sleep(0.05)


class RayCluster:
    """A head and one more node, each with two cores, and a directory that only looks shared."""

    def __init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            pytest.skip("Ray is not installed: pip install -e '.[ray]'")
        if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
            pytest.skip("no second node: this user may not unshare namespaces")
        os.environ |= TOKEN
        self.directory = Path(tempfile.mkdtemp(prefix="nb-", dir="/tmp"))
        self.private = self.directory / "private"
        self.log = (self.directory / "log").open("wb")
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        found = self.directory / "ray/ray_current_cluster"
        self.start("head")
        wait_until(lambda: found.exists() and found.read_text().strip(), "for the head of the Ray cluster")
        self.address = found.read_text().strip()
        self.start("second")

    def start(self, name: str) -> None:
        """Another node, ``head`` or one with a resource of that name."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.nodes[name] = subprocess.Popen(
            [SCRIPTS / "ray_node.sh", self.directory, name],
            env=environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True,
        )  # fmt: skip

    def kill(self, name: str) -> None:
        """End a node as a power cut does."""
        node = self.nodes.pop(name)
        node.kill()
        node.wait()

    def end(self) -> None:
        for node in self.nodes.values():
            node.send_signal(signal.SIGTERM)
        for node in self.nodes.values():
            try:
                node.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Slurm:
    """One node that says it has four cores, a partition ``main``, and ``urgent``, which preempts it."""

    def __init__(self) -> None:
        if importlib.util.find_spec("submitit") is None:
            pytest.skip("submitit is not installed: pip install -e '.[slurm]'")
        if not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
            pytest.skip("Slurm is not installed: tests/cluster/slurm.sh install")
        if os.geteuid() != 0:
            pytest.skip("only root can start slurmd")
        self.directory = Path(tempfile.mkdtemp(prefix="nb-slurm-", dir="/tmp"))
        self._script("start")

    def end(self) -> None:
        self._script("stop")
        shutil.rmtree(self.directory, ignore_errors=True)

    def _script(self, what: str) -> None:
        done = subprocess.run([SCRIPTS / "slurm.sh", what, self.directory], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
