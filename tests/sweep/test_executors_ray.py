"""What the contract of executors does not say: nodes that die, nodes of another disk, a Ray of one's own."""

import contextlib
import ipaddress
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from clusters import RayCluster, wait_until
from conftest import Cli
from test_executors import Tell, children_of, gone, placed, saves_often, trivial
from test_interrupt import Terminal
from test_train import numbers

from normbench.config.catalog import executors
from normbench.config.catalog.executors import CannotExecute
from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.records import Failure, Record
from normbench.sweep import run as sweep
from normbench.sweep.executors import ray
from normbench.sweep.executors.ray import _Tasks
from normbench.sweep.placement import Placement

execute = partial(placed, ray.execute)


def says_where(trial: Trial, tell: Tell, *, marker: Path, **means: Any) -> Record:
    tell({"marked": marker.exists()})
    return sweep.work(trial, tell, **means)


def test_when_a_node_dies_its_trials_go_on_elsewhere_from_their_checkpoints(
    ray_cluster: RayCluster, tiny: Callable[..., Trial], tiny_data: Path, tmp_path: Path
) -> None:
    ray_cluster.start("doomed")
    trials = [tiny(norm="batch", seed=seed, epochs=12) for seed in range(6)]
    means = {"data": tiny_data, "placement": Placement(device="cpu")}
    steps: dict[str, list[int]] = {trial.id: [] for trial in trials}

    def report(trial: Trial, event: dict[str, Any]) -> None:
        steps[trial.id].append(event["epoch"] * 1000 + event["images"])
        has_saved = all(len(told) > 2 for told in steps.values())  # six on six cores
        if has_saved and "doomed" in ray_cluster.nodes:
            ray_cluster.kill("doomed")

    found = dict(
        execute(
            partial(saves_often, checkpoints=(tmp_path / "there").joinpath, **means),
            trials, workers=6, report=report, stop=lambda: False, address=ray_cluster.address,
        )
    )  # fmt: skip

    assert "doomed" not in ray_cluster.nodes, "it was killed while trials ran on it"
    assert len(found) == 6
    first = {trial_id: min(told) for trial_id, told in steps.items()}
    again = [
        told.index(first[trial_id], 1) for trial_id, told in steps.items() if first[trial_id] in told[1:]
    ]
    assert again == [], "a trial began anew instead of from its checkpoint"
    for trial in trials[:2] + trials[-2:]:
        undisturbed = sweep.work(trial, lambda _: False, checkpoints=(tmp_path / "here").joinpath, **means)
        record = found[trial]
        assert isinstance(record, Record)
        assert numbers(record) == numbers(undisturbed)


@pytest.mark.parametrize("port", ["free", 99999])
def test_an_address_where_nobody_answers_is_refused_at_once(port: object, tiny: Callable[..., Trial]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1] if port == 'free' else port}"
        with pytest.raises(CannotExecute, match=f"executor ray: nobody answers at {address}"):
            list(
                execute(trivial, [tiny()], workers=1, report=pytest.fail, stop=lambda: False, address=address)
            )


def test_last_words_of_a_task_that_died_do_not_make_its_successor_hang_in_the_queue(
    tiny: Callable[..., Trial],
) -> None:
    trial, told = tiny(), {"epoch": 1, "images": 1}
    tasks = object.__new__(_Tasks)  # as it is when a node has just died
    tasks._silence, tasks.running, tasks._looked_at = {}, {}, 0.0
    tasks._desk, tasks._ray = MagicMock(), MagicMock(**{"get.return_value": [(trial, told)]})

    assert tasks.news() == [(trial, told)]
    tasks.running["successor"] = trial

    assert tasks.hanging(hang_seconds=0.5) == []


def test_a_node_with_a_disk_of_its_own_is_sent_the_data_set(
    ray_cluster: RayCluster, tiny: Callable[..., Trial], tiny_data: Path, tmp_path: Path
) -> None:
    dataset = tiny().dataset
    data = ray_cluster.private / "data"  # another directory on the second node, and empty
    data.mkdir()
    (data / "tiny").symlink_to(tiny_data / "tiny")
    decoded.prepare(dataset, data)
    work = partial(
        says_where, marker=data / "tiny", data=data, placement=Placement(device="cpu"),
        checkpoints=(tmp_path / "checkpoints").joinpath,
    )  # fmt: skip

    def run(files: tuple[Path, ...]) -> tuple[dict[Trial, Record | Failure], dict[str, bool]]:
        at_home: dict[str, bool] = {}
        found = execute(
            work, [tiny(seed=seed, epochs=1) for seed in range(4)],
            workers=4, report=lambda trial, event: at_home.setdefault(trial.id, event.get("marked")),
            stop=lambda: False, address=ray_cluster.address, files=files,
        )  # fmt: skip
        return dict(found), at_home

    without, at_home = run(())
    assert sorted(at_home.values()) == [False, False, True, True], "each node ran two of the four"
    for trial, outcome in without.items():
        assert isinstance(outcome, Record) == at_home[trial.id]

    with_, at_home = run(decoded.files(dataset, data))
    assert False in at_home.values()
    assert all(isinstance(outcome, Record) for outcome in with_.values())


def test_a_trial_that_fits_no_node_is_refused_at_once(
    ray_cluster: RayCluster, tiny: Callable[..., Trial]
) -> None:
    with pytest.raises(CannotExecute, match=r"no node has room for a trial \(threads 3, gpus 0\)"):
        list(
            execute(
                trivial, [tiny()], workers=1, report=pytest.fail, stop=lambda: False,
                address=ray_cluster.address, threads=3,
            )
        )  # fmt: skip


def test_without_the_extra_one_line_says_what_to_install_and_nothing_is_written(
    cli: Cli, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    ended = cli("run", "tiny.yaml", "name=q", "--executor", "ray")

    assert ended.code == 2
    assert ended.err.splitlines()[0] == (
        "executor ray: ray is not installed; in the clone of normbench: pip install -e '.[ray]'"
    )
    assert not (lab / "results/q").exists()


# ---- a Ray of one's own


def family(pid: int) -> set[int]:
    """All descendants of a process."""
    children = set(children_of(pid))
    return children.union(*map(family, children))


def listeners(processes: set[int]) -> set[str]:
    """The addresses that processes listen on, as the kernel has them."""
    inodes = set()
    for link in (link for pid in processes for link in Path(f"/proc/{pid}/fd").glob("*")):
        with contextlib.suppress(OSError):
            inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for family_, size in ("tcp", 4), ("tcp6", 16):
        for line in Path(f"/proc/net/{family_}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                raw = bytes.fromhex(words[1].partition(":")[0])
                swapped = b"".join(raw[at : at + 4][::-1] for at in range(0, size, 4))
                address = ipaddress.ip_address(swapped)
                found.add(str(getattr(address, "ipv4_mapped", None) or address))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_without_an_address_ray_listens_to_this_machine_only_and_goes_with_the_sweep(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        executors.EXECUTORS["ray"].check()
    except CannotExecute as error:
        pytest.skip(str(error))
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    home, temporary = tmp_path / "home", Path(tempfile.mkdtemp(prefix="nb-", dir="/tmp"))
    home.mkdir()
    long = ["name=own", "trial.epochs=3000", "sweep.norm=[batch]", "sweep.batch_size=[8]"]
    terminal = Terminal(
        "run", "tiny.yaml", *long, "--executor", "ray", "--workers", "1",
        HOME=str(home), TMPDIR=str(temporary), XDG_CACHE_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    terminal.read_until(r"batch-resnet8-b8-s0-\w+ +\d+/3000 ")  # it trains
    processes = family(terminal.process.pid)
    found = listeners(processes)
    assert found
    assert all(ipaddress.ip_address(address).is_loopback for address in found), found
    assert list(temporary.iterdir())

    terminal.process.send_signal(signal.SIGTERM)
    code, out, lines = terminal.end()

    assert (code, out) == (143, "results/own: 1 trial, 1 missing; 1 with a saved state to resume from\n")
    assert lines[-1].startswith("resume with: normbench run tiny.yaml")
    assert [line for line in lines if re.search("ray|warn", line, re.I) and "resume" not in line] == []
    assert list((lab / "results/own/checkpoints").glob("*.ckpt"))
    wait_until(lambda: all(map(gone, processes)), "for Ray to end")
    assert list(temporary.iterdir()) == []
    assert list(home.iterdir()) == []
    temporary.rmdir()
