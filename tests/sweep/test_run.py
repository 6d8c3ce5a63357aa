import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import forkserver, place_of, tiny_trial
from test_train import numbers

from normbench import machine
from normbench.config import experiment as config
from normbench.config.catalog.datasets import DataError
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.trial import Trial
from normbench.records import Failure, Record, RecordsInUse, Store
from normbench.sweep import run as sweep
from normbench.sweep.executors import pool
from normbench.sweep.placement import Placement
from normbench.sweep.run import Listener, Survey, Unusable
from normbench.sweep.work import OutOfShare
from normbench.training import checkpoint
from normbench.training import device as devices
from normbench.training import train as training

TINY: dict[str, Any] = {
    "name": "tiny",
    "trial": {
        "dataset": {"name": "folder", "folder": "tiny", "image_size": 8},
        "model": {"name": "resnet8", "width": 0.5},
        "batch_size": 10,
        "epochs": 2,
    },
    "sweep": {"norm": ["group", "batch"], "seed": [0, 1]},
    "execute": {"executor": "serial"},
}
NO_DATA = Path("/nonexistent/data")


@dataclass
class Lab:
    """Runs experiments of tiny trials."""

    directory: Path
    data: Path

    @property
    def results(self) -> Path:
        return self.directory / "results"

    @property
    def store(self) -> Store:
        return Store(self.results / "tiny")

    def experiment(self, **changes: Any) -> config.Experiment:
        path = self.directory / "tiny.yaml"
        path.write_text(json.dumps(TINY | changes))  # JSON is YAML
        return config.load(path)

    def run(self, experiment: config.Experiment | None = None, **options: Any) -> "Seen":
        seen = Seen()
        data = options.pop("data", self.data)
        seen.survey = sweep.run(experiment or self.experiment(), self.results, data, listener=seen, **options)
        return seen


@dataclass
class Seen(Listener):
    """What a run told, and how it ended."""

    said: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    ended: dict[str, Record | Failure] = field(default_factory=dict)
    events: int = 0
    survey: Survey | None = None

    def say(self, words: str) -> None:
        self.said.append(words)

    def begin(self, survey: Survey, missing: Sequence[Trial]) -> None:
        self.begun = [trial.id for trial in missing]

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        self.events += 1

    def outcome(self, trial: Trial, outcome: Record | Failure) -> None:
        self.ended[trial.id] = outcome

    @property
    def counts(self) -> dict[str, int]:
        assert self.survey is not None
        return dict(self.survey.counts())


@pytest.fixture
def lab(tmp_path: Path, tiny_data: Path) -> Lab:
    return Lab(tmp_path, tiny_data)


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, *ids: str) -> Iterator[None]:
    """Training raises for these trials."""
    from normbench.training import train as training

    real = training.train

    def train(trial: Trial, *arguments: Any) -> Record:
        if trial.id in ids:
            raise ValueError(f"no luck with seed {trial.seed}")
        return real(trial, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", train)
        yield


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file, with what betrays that it was written again."""
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


# ---- what is missing, and nothing else


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3, 9])
def test_workers_begin_before_data_are_looked_at_and_as_many_as_there_is_work_for(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    begun: list[int] = []
    looked = ""

    @contextlib.contextmanager
    def ahead(placement: Placement, load: object) -> Iterator[dict[str, object]]:
        begun.append(placement.worker_processes)
        yield {}

    def prepare(*_: object) -> None:
        nonlocal looked
        looked += "after" if begun else "before"
        raise Unusable("never mind")

    monkeypatch.setattr(pool, "ahead", ahead)
    by_pool = lab.experiment(execute={"executor": "pool", "workers": workers})
    with monkeypatch.context() as patched:
        patched.setattr(sweep, "prepare", prepare)
        with pytest.raises(Unusable):
            lab.run(by_pool)
    assert (begun, looked) == ([min(workers, 4)], "after")

    lab.run()
    begun.clear()
    lab.run(by_pool)
    assert begun == [], "nothing is missing"


def test_a_run_gives_every_trial_its_record(lab: Lab) -> None:
    seen = lab.run()

    ids = [trial.id for trial in lab.experiment().trials]
    assert seen.begun == ids
    assert seen.counts == {"done": 4}
    assert seen.events >= 8, "at least one an epoch"
    assert seen.survey is not None
    assert seen.ended == seen.survey.records
    assert sorted(path.stem for path in lab.store.directory.glob("*.json")) == sorted(ids)
    assert list((lab.store.directory / "checkpoints").iterdir()) == []


def test_running_again_does_nothing_and_needs_no_data(lab: Lab) -> None:
    lab.run()
    before = contents(lab.results)

    seen = lab.run(data=NO_DATA)

    assert seen.begun == []
    assert seen.events == 0
    assert seen.counts == {"done": 4}
    assert contents(lab.results) == before


AGAIN = """
import json, sys
from pathlib import Path
from normbench.config import experiment as config
from normbench.sweep import run as sweep
path, results, data = map(Path, sys.argv[1:])
survey = sweep.run(config.load(path), results, data)
print(json.dumps([dict(survey.counts()), "torch" in sys.modules]))
"""


def test_running_again_does_not_load_torch(lab: Lab) -> None:
    lab.run()

    again = subprocess.run(
        [sys.executable, "-c", AGAIN, str(lab.directory / "tiny.yaml"), str(lab.results), str(NO_DATA)],
        capture_output=True,
        check=True,
    )

    assert json.loads(again.stdout) == [{"done": 4}, False]


def test_only_what_is_missing_is_run(lab: Lab) -> None:
    lab.run()
    gone = lab.experiment().trials[2].id
    lab.store.record_path(gone).unlink()
    kept = contents(lab.results)

    seen = lab.run()

    assert seen.begun == [gone]
    after = contents(lab.results)
    assert {key: after[key] for key in kept} == kept


def test_a_wider_experiment_keeps_what_it_has(lab: Lab) -> None:
    lab.run()

    seen = lab.run(lab.experiment(sweep={"norm": ["group", "batch"], "seed": [0, 1, 2]}))

    assert sorted(trial_id.partition("-")[0] for trial_id in seen.begun) == ["batch", "group"]
    assert seen.counts == {"done": 6}


def test_a_narrower_experiment_leaves_the_other_records_alone(lab: Lab) -> None:
    lab.run()

    seen = lab.run(lab.experiment(sweep={"norm": ["group"]}))

    assert seen.counts == {"done": 1}
    assert seen.begun == []
    assert len(list(lab.store.directory.glob("*.json"))) == 4
    assert any(
        line.startswith("3 further trials of this experiment's plan are not part") for line in seen.said
    )


def test_a_narrower_run_leaves_the_plan_as_it_is_unless_it_is_to_be_replaced(lab: Lab) -> None:
    lab.run()
    plan = lab.store.directory / sweep.PLAN
    before = plan.read_bytes()
    narrow = lab.experiment(sweep={"norm": ["group"]})

    lab.run(narrow)
    assert plan.read_bytes() == before

    sweep.run(narrow, lab.results, lab.data, replace_plan=True)
    assert sweep.load_plan(lab.results, "tiny") == narrow
    assert len(sweep.survey(narrow, lab.results).stray) == 3


def test_a_plan_that_cannot_be_read_is_set_aside(lab: Lab) -> None:
    lab.run()
    (lab.store.directory / sweep.PLAN).write_text("name: [")

    seen = lab.run()

    assert any("not a valid plan" in line for line in seen.said)
    assert (lab.store.directory / "corrupt" / sweep.PLAN).read_text() == "name: ["
    assert sweep.load_plan(lab.results, "tiny") == lab.experiment()


def test_the_experiment_is_kept_beside_its_records(lab: Lab) -> None:
    lab.run()

    assert sweep.load_plan(lab.results, "tiny") == lab.experiment()
    with pytest.raises(config.ConfigError, match=r"other/experiment\.yaml: cannot be read"):
        sweep.load_plan(lab.results, "other")


def test_a_survey_changes_nothing(lab: Lab) -> None:
    assert sweep.survey(lab.experiment(), lab.results).counts() == {"missing": 4}
    assert not lab.results.exists()


def test_a_network_that_memory_does_not_hold_is_refused_by_arithmetic(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 200_000)  # 19,500 parameters take 234 kB
    with pytest.raises(
        sweep.Unusable, match=r"model resnet8, width 0.5: its .* parameters take .* are available"
    ):
        lab.run()
    assert not lab.store.directory.exists()


# ---- failures


def test_a_failure_is_kept_and_tried_again_by_the_next_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = lab.experiment().trials[1].id
    with failing(monkeypatch, bad):
        seen = lab.run()
    assert seen.counts == {"done": 3, "failed": 1}
    assert seen.survey is not None
    assert seen.survey.errors[bad].traceback.endswith("ValueError: no luck with seed 1\n")
    assert lab.store.error_path(bad).exists()

    seen = lab.run()

    assert seen.begun == [bad]
    assert seen.counts == {"done": 4}
    assert not lab.store.error_path(bad).exists()


def test_without_retry_a_failure_stays(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = lab.experiment().trials[1].id
    with failing(monkeypatch, bad):
        lab.run()

    seen = lab.run(retry=())

    assert seen.begun == []
    assert seen.counts == {"done": 3, "failed": 1}


def test_fail_fast_stops_at_the_first_failure(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = (trial.id for trial in lab.experiment().trials)
    with failing(monkeypatch, second):
        seen = lab.run(fail_fast=True)

    assert list(seen.ended) == [first, second]
    assert seen.counts == {"done": 1, "failed": 1, "missing": 2}


@pytest.mark.slow
@pytest.mark.parametrize("status", ["diverged", "out_of_memory"])
def test_results_that_are_not_done_are_run_again_only_if_asked(lab: Lab, status: str) -> None:
    lab.run()
    trial_id = lab.experiment().trials[0].id
    path = lab.store.record_path(trial_id)
    lab.store.save(Record.from_json(path.read_text()).model_copy(update={"status": status, "final": None}))
    assert lab.run().begun == []

    seen = lab.run(retry=("failed", status))

    assert seen.begun == [trial_id]
    assert seen.counts == {"done": 4}


def test_a_result_is_not_forgotten_when_it_cannot_be_run_again(lab: Lab) -> None:
    lab.run()
    trial_id = lab.experiment().trials[0].id
    path = lab.store.record_path(trial_id)
    lab.store.save(
        Record.from_json(path.read_text()).model_copy(update={"status": "diverged", "final": None})
    )

    with pytest.raises(DataError):
        lab.run(retry=("diverged",), data=NO_DATA)

    assert path.exists()


def test_what_is_run_again_goes_on_from_its_state_after_a_stop(lab: Lab) -> None:
    """And not from the state of the attempt that its record is of."""
    lab.run()
    trial = lab.experiment().trials[0]
    path, prefix = lab.store.record_path(trial.id), lab.store.checkpoint_path(trial.id)
    lab.store.save(
        Record.from_json(path.read_text()).model_copy(update={"status": "diverged", "final": None})
    )
    prefix.parent.mkdir(exist_ok=True)
    for slot, later in zip(checkpoint.slots(prefix), (1, -1), strict=True):
        slot.write_bytes(b"")
        os.utime(slot, ns=(0, path.stat().st_mtime_ns + later))

    with lab.store.locked():
        assert [slot.exists() for slot in checkpoint.slots(prefix)] == [True, False]


def test_results_to_be_run_again_stay_until_there_is_another(lab: Lab) -> None:
    lab.run()
    paths = [lab.store.record_path(trial.id) for trial in lab.experiment().trials]
    for path in paths:
        lab.store.save(
            Record.from_json(path.read_text()).model_copy(update={"status": "diverged", "final": None})
        )

    lab.run(retry=("diverged",), stop=lambda: True)

    assert all(path.exists() for path in paths)


def test_a_device_that_is_not_there_is_refused_before_anything_runs(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    execute = {"executor": "serial", "device": "cuda:1"}
    with pytest.raises(sweep.Unusable, match=r"execute.device cuda:1: there is no GPU that torch can use"):
        lab.run(lab.experiment(execute=execute))
    assert not any(lab.store.directory.glob("*.error.txt"))


def test_what_cannot_run_leaves_no_directory_behind(lab: Lab) -> None:
    with pytest.raises(sweep.Unusable):
        lab.run(lab.experiment(trial=TINY["trial"] | {"batch_size": 1000}))
    assert not lab.store.directory.exists()


def test_a_damaged_record_is_set_aside_and_its_trial_run_again(lab: Lab) -> None:
    lab.run()
    trial_id = lab.experiment().trials[3].id
    path = lab.store.record_path(trial_id)
    path.write_bytes(path.read_bytes()[:100])

    seen = lab.run()

    assert seen.begun == [trial_id]
    assert seen.counts == {"done": 4}
    assert (lab.store.directory / "corrupt" / path.name).stat().st_size == 100
    assert [line for line in seen.said if str(path) in line and "corrupt" in line]


def test_when_a_result_cannot_be_written_the_executor_is_told_to_stop_at_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the exception is forgotten: until then workers would go on, for nobody."""
    closed = []

    def execute(
        work: object, trials: Sequence[Trial], *_: object, **__: object
    ) -> Iterator[tuple[Trial, Failure]]:
        try:
            yield trials[0], Failure("no")
        finally:
            closed.append(True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(lab.results))

    with monkeypatch.context() as patch:
        patch.setattr("normbench.sweep.executors.serial.execute", execute)
        patch.setattr(Store, "save_error", full)
        with pytest.raises(OSError, match="No space") as caught:
            lab.run()
    assert caught.tb is not None, "the exception still holds on to the run"
    assert closed

    assert lab.run().counts == {"done": 4}


# ---- before anything trains


def test_all_that_cannot_run_is_said_at_once_and_nothing_trains(lab: Lab) -> None:
    sweeps = [
        {"norm": [{"name": "group", "groups": 5}], "norm_every": [2], "seed": [0, 1]},
        {"norm": ["instance"], "dataset.image_size": [4]},
        {"norm": ["layer"], "batch_size": [100]},
        {"norm": ["layer"]},
        {"norm": [{"name": "group", "groups": 16}], "norm_every": [2, 7]},
    ]
    with pytest.raises(Unusable) as caught:
        lab.run(lab.experiment(sweep=sweeps))

    groups, positions, batch, everywhere = str(caught.value).splitlines()
    assert "group" in groups
    assert "5 groups do not divide 8 channels" in groups
    assert "instance" in positions
    assert "[10, 32, 1, 1]" in positions
    assert batch == "batch_size 100 is more than the 64 training images"
    assert "16 channels do not divide 8 channels" in everywhere or "16 groups do not divide" in everywhere
    assert list(lab.store.directory.glob("*.json")) == []
    assert not (lab.store.directory / sweep.PLAN).exists()


def test_data_that_cannot_be_had_end_the_run_before_it_begins(lab: Lab) -> None:
    with pytest.raises(DataError, match="nonexistent"):
        lab.run(data=NO_DATA)


# ---- one runner


def test_a_second_runner_is_refused(lab: Lab) -> None:
    with lab.store.locked(), pytest.raises(RecordsInUse, match=f"is in use by process {os.getpid()} on "):
        lab.run()

    assert lab.run().counts == {"done": 4}


# ---- stop and go


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_stopped_sweep_goes_on_under_another_executor_as_if_it_had_not_been(
    lab: Lab, executor: str, request: pytest.FixtureRequest
) -> None:
    experiment = lab.experiment(execute={"executor": place_of(executor, request), "workers": 2})
    seen = Seen()
    stopped = sweep.run(
        experiment, lab.results, lab.data, listener=seen, stop=lambda: seen.events >= 1 + len(seen.ended)
    )
    assert stopped.counts()["missing"] >= 1, "it did stop"

    other = "pool" if executor == "serial" else "serial"
    assert lab.run(lab.experiment(execute={"executor": other})).counts == {"done": 4}
    assert all_numbers(lab.store) == undisturbed_numbers(lab)


def all_numbers(store: Store) -> dict[str, dict[str, Any]]:
    records, damaged = store.load()
    assert damaged == {}
    return {trial_id: numbers(record) for trial_id, record in records.items()}


def undisturbed_numbers(lab: Lab, **changes: Any) -> dict[str, dict[str, Any]]:
    other = Lab(lab.directory / "undisturbed", lab.data)
    other.directory.mkdir()
    other.run(other.experiment(**(changes | {"execute": {"executor": "serial"}})))
    return all_numbers(other.store)


def test_the_executor_of_the_file_keeps_its_options_and_another_brings_its_own(lab: Lab) -> None:
    experiment = lab.experiment(execute={"executor": {"name": "ray", "gpus": 0.25}, "threads": 2})

    assert sweep.override(experiment, executor="ray", workers=3).execute == config.Execute(
        executor={"name": "ray", "gpus": 0.25}, threads=2, workers=3
    )
    assert sweep.override(experiment, executor="pool").execute == config.Execute(executor="pool", threads=2)


@dataclass
class OnGpu:
    """A device that training finds too small, or not."""

    status: str
    settled: list[tuple[str, float]] = field(default_factory=list)

    def train(self, trial: Trial, *_: object) -> Record:
        return Record.model_construct(trial=trial, status=self.status, provenance={"host": "here"})

    def work(
        self, monkeypatch: pytest.MonkeyPatch, sharing: int, where: str = "cuda:0", seats: int = 1
    ) -> Record:
        def settle_on(device: torch.device, part: float) -> None:
            self.settled.append((str(device), part))

        monkeypatch.setattr(devices, "device", torch.device)
        monkeypatch.setattr(devices, "settle_on", settle_on)
        monkeypatch.setattr(devices, "own_stream", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(training, "train", self.train)
        trial = tiny_trial()
        return sweep.work(
            trial, lambda _: False, data=Path(), checkpoints=Path, device=where, seats=seats,
            placement=Placement(trials_per_device=sharing, trials_per_process=seats),
        )  # fmt: skip


def test_the_record_says_how_many_shared_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = OnGpu("done")

    assert gpu.work(monkeypatch, sharing=4).provenance == {"host": "here", "slots_per_device": 4}
    assert gpu.work(monkeypatch, sharing=1).provenance == {"host": "here"}
    assert gpu.work(monkeypatch, sharing=4, seats=2).provenance == {
        "host": "here", "slots_per_device": 4, "together": 2
    }  # fmt: skip
    assert gpu.settled == [("cuda:0", 1 / 4), ("cuda:0", 1.0), ("cuda:0", 2 / 5)]


def test_out_of_a_share_of_a_gpu_is_no_result_and_out_of_the_whole_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = OnGpu("out_of_memory")

    with pytest.raises(OutOfShare, match=r"needs more than the part of the GPU's memory .* among 4 trials"):
        gpu.work(monkeypatch, sharing=4)
    assert gpu.work(monkeypatch, sharing=1).status == "out_of_memory"
    assert gpu.work(monkeypatch, sharing=4, where="cpu").status == "out_of_memory"


def test_slots_that_there_cannot_be_are_refused_before_anything_runs(lab: Lab) -> None:
    experiment = lab.experiment(execute={"slots_per_device": 4, "device": "cpu"})

    with pytest.raises(Unusable, match=r"^execute.slots_per_device 4: slots are on GPUs, and this is a CPU"):
        lab.run(experiment)
    assert not list(lab.results.glob("*/*.json"))


# ---- killed, again and again

KILLS = int(os.environ.get("NORMBENCH_SOAK", 0))  # a longer soak: NORMBENCH_SOAK=100
MANY: dict[str, Any] = {"sweep": {"norm": ["group", "batch", "switchable"], "seed": [0, 1, 2, 3]}}


class Pulse(Listener):
    """Says through a pipe that it lives."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        self.pipe = pipe

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        self.pipe.send_bytes(b"x")


def runner(path: Path, results: Path, data: Path, pipe: "Connection[Any, Any]") -> None:
    """A runner in a process of its own, at the head of its own group."""
    from normbench.training import train as training

    os.setsid()
    training.REPORT_SECONDS, training.CHECKPOINT_SECONDS = 0.0, -1.0  # a checkpoint after every update
    sweep.run(config.load(path), results, data, listener=Pulse(pipe))


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "kills"), [("serial", KILLS or 10), ("pool", KILLS or 2)])
def test_no_kill_loses_a_finished_trial_or_runs_it_twice(lab: Lab, executor: str, kills: int) -> None:
    """SIGKILL at random instants, of the runner alone or of all its processes; this process does the rest."""
    context = forkserver()
    changes = MANY | {"execute": {"executor": executor, "workers": 2}}
    expected = undisturbed_numbers(lab, **changes)
    instants = random.Random(0)
    killed, round_, updates, place = 0, 0, 0, lab
    while killed < kills:
        round_ += 1
        place = Lab(lab.directory / f"round{round_}", lab.data)
        place.directory.mkdir()
        place.experiment(**changes)
        ended = False
        while not ended and killed < kills:
            finished = finished_in(place)
            ended = not run_and_kill(context, place, 0.3 * instants.random(), group=killed % 2 == 1)
            killed += not ended
            now = finished_in(place)
            assert {name: now.get(name) for name in finished} == finished
        finished = finished_in(place)
        seen = place.run(place.experiment(**MANY))
        assert len(seen.begun) == 12 - len(finished)
        assert all_numbers(place.store) == expected
        assert [path.name for path in place.results.rglob("*.tmp")] == []
        updates += sum(len(record.epochs) * 6 for record in place.store.load()[0].values())
    words = (
        f"{executor}: {killed} kills in {round_} sweeps of 12 trials, {updates} updates; none lost or doubled"
    )
    sys.stdout.write(f"{words}, all records equal to the undisturbed ones\n")


def finished_in(place: Lab) -> dict[str, bytes]:
    """The records, with their times, which would be others if a trial ran again."""
    return {path.name: path.read_bytes() for path in place.store.directory.glob("*.json")}


def run_and_kill(
    context: "multiprocessing.context.ForkServerContext", place: Lab, after: float, group: bool
) -> bool:
    """Kill a runner so many seconds after its first sign of life; False if it ended by itself before that."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=runner, args=(place.directory / "tiny.yaml", place.results, place.data, theirs)
    )
    process.start()
    theirs.close()
    with contextlib.suppress(EOFError):
        ours.recv_bytes()
    process.join(after)
    alive = process.is_alive()
    if alive:
        assert process.pid is not None
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    process.close()
    ours.close()
    return alive


def test_a_run_says_at_once_what_it_is_waiting_for(lab: Lab) -> None:
    assert lab.run().said[0] == "loading torch and data …"
    assert lab.run().said == []


def test_a_folder_that_is_not_there_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom normbench.sweep import run as sweep\n"
        "from normbench.config.trial import Trial\n"
        "trial = Trial(dataset={'name': 'folder', 'folder': 'none'})\n"
        f"try:\n    sweep.prepare([trial], Path({str(tmp_path)!r}), print)\n"
        "except RuntimeError as error:\n    print(error, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "none/train: missing" in done.stdout, done.stderr
    assert done.stdout.endswith("False\n")
