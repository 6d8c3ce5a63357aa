"""Records: one finished trial is one JSON file, and the file's existence is what "done" means."""

import contextlib
import hashlib
import itertools
import json
import os
import platform
import traceback as tracebacks
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, ValidationError, WrapValidator, model_serializer, model_validator
from pydantic_core import from_json, to_json

from normbench.config.trial import CHANGED, Frozen, Trial, with_old_defaults
from normbench.files import Unwritable, locked, remove_if_unused, write_atomically
from normbench.text import plural

SCHEMA: Literal[6] = 6  # earlier ones knew fewer of the settings in trial.ADDED and trial.CHANGED
CHECKSUM_SCHEMA = 4  # the first with a checksum
ERROR = ".error.txt"
SAFETENSORS, PICKLED = ".safetensors", ".pt"  # of weights
CHOICES = "tuning.json"  # beside the records: which candidates their tuning trials have chosen
Status = Literal["done", "diverged", "out_of_memory"]
FailureState = Literal["failed", "timeout"]
STATE_PREFIX = "state: "  # of the first line of a stored failure
TIMEOUT_PREFIX = "timeout: no step for "  # of the last line of a timeout; earlier versions stored no state


class Finite(Frozen):
    """A model without infinite numbers and NaN, which JSON does not have."""

    model_config = ConfigDict(allow_inf_nan=False)


class _WithMetrics(Finite):
    """Results with metrics beside the accuracy; without any, they are stored as before there were others."""

    metrics: dict[str, float] = Field({}, description="other metrics by name, such as ``test_psnr``")

    @model_serializer(mode="wrap")
    def _without_empty(self, plain: Any) -> dict[str, Any]:
        values: dict[str, Any] = plain(self)
        if not values["metrics"]:
            del values["metrics"]
        return values


class Epoch(_WithMetrics):
    """The results of an epoch. Accuracies are fractions; what was not measured is None."""

    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    lr: float = Field(description="learning rate of the epoch's last step")
    seconds: float


class Final(_WithMetrics):
    """The numbers to compare trials by; never the best epoch, which would be selected on the test set."""

    test_accuracy: float | None = Field(None, description="of the last epoch")
    test_accuracy_median5: float | None = Field(None, description="median of the last five evaluations")


class Measured(Finite):
    """A result of an evaluation of the trained network."""

    name: str = Field(description="of the evaluation")
    options: dict[str, int | str] = Field({}, description="its options, and what distinguishes its results")
    numbers: dict[str, int | float | None] = Field(description="None: not finite")

    @model_validator(mode="after")
    def _with_old_default(self) -> Self:
        """Name the estimator of ``precise``, which older results leave out, since there was only one."""
        if self.name == "precise":
            self.options.setdefault("variance", CHANGED["evaluate.variance"])
        return self


class RequirementError(ValueError):
    """A valid record that names a method or the like that this normbench does not have."""


class NewerRecordError(RequirementError):
    """A valid record of a schema that only a later version of normbench can read."""


class Requirement(str):
    """What this normbench lacks to read a record, in place of what is wrong with a damaged one."""

    __slots__ = ()


def describe_unreadable(unreadable: Mapping[Path, str], consequence: str) -> list[str]:
    """Return a line for every damaged record, and one for all records with the same requirement.

    Args:
        unreadable: as from :meth:`Store.load`.
        consequence: what is done about a damaged record; records with a requirement stay in place.
    """
    lines = [
        f"{path}: not a valid record, {consequence} ({problem})"
        for path, problem in unreadable.items()
        if not isinstance(problem, Requirement)
    ]
    requirements = {path: problem for path, problem in unreadable.items() if isinstance(problem, Requirement)}
    for problem, count in Counter(requirements.values()).items():
        directory = next(path for path, other in requirements.items() if other == problem).parent
        lines.append(
            f"{directory}: {plural(count, 'record')} {'needs' if count == 1 else 'need'} {problem}, left out"
        )
    return lines


class Record(Finite):
    """The record of a trial: its settings, its course, its end and where it ran."""

    schema_version: Literal[1, 2, 3, 4, 5, 6] = Field(SCHEMA, alias="schema")
    trial: Annotated[
        Trial, WrapValidator(lambda value, check: value if isinstance(value, Trial) else check(value))
    ]
    status: Status
    epochs: tuple[Epoch, ...]
    final: Final | None = Field(None, description="None unless the status is 'done'")
    failure: dict[str, Any] | None = Field(None, description="where a trial that is not 'done' ended")
    inference: tuple[Measured, ...] = Field((), description="results of the trial's ``evaluate``")
    images_per_second: float | None
    seconds: float
    peak_memory_bytes: int
    diagnostics: dict[str, Any]
    data: str = Field(description="content hash of the decoded data set")
    provenance: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _without_id(cls, values: Any) -> Any:
        """Remove the stored id, which must be the one that follows from the settings."""
        if isinstance(values, dict) and isinstance(values.get("trial"), dict):
            settings = with_old_defaults(values["trial"])
            stored = settings.pop("id", None)
            trial = Trial.model_validate_json(json.dumps(settings))
            if stored not in (None, trial.id):
                raise ValueError(f"its trial id is {stored}, its settings give {trial.id}")
            values = values | {"trial": trial}
        return values

    @model_serializer(mode="wrap")
    def _with_id(self, plain: Any) -> dict[str, Any]:
        values: dict[str, Any] = plain(self)
        return values | {"trial": _as_stored(self.trial)}

    @classmethod
    def from_json(cls, text: str | bytes, expected: Trial | None = None) -> Self:
        """Read a record.

        Args:
            text: as from ``to_json``.
            expected: its trial, probably; if the stored settings are equal, they are not validated again.

        Raises:
            NewerRecordError: a later version of normbench wrote it.
            RequirementError: it names a method, model or the like that this normbench does not have.
            ValueError: the text is not a whole, valid record of this schema.
        """
        try:
            values = _parsed(text)
        except RecursionError:
            raise ValueError("nested too deeply for a record") from None
        if not isinstance(values, dict):
            raise ValueError("not a record: expected a JSON object")
        checksum, schema = values.pop("sha256", None), values.get("schema")
        has_checksum = checksum is not None or (isinstance(schema, int) and schema >= CHECKSUM_SCHEMA)
        if has_checksum and checksum != _checksum(values):
            raise ValueError("its checksum does not match its content")
        if isinstance(schema, int) and schema > SCHEMA:
            raise NewerRecordError(f"a newer normbench: the schema is {schema}, this one reads {SCHEMA}")
        if expected is not None and to_json(values.get("trial")) == to_json(_as_stored(expected)):
            values["trial"] = expected
        try:
            return cls.model_validate(values, strict=False)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "unknown":
                missing = "the {kind} {name}, which this normbench does not have".format(**first["ctx"])
                raise RequirementError(missing) from None
            path = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path}: {first['msg']}" if path else first["msg"]) from None

    def to_json(self) -> str:
        """Return the stored form: from ``CHECKSUM_SCHEMA`` on with a checksum of its values."""
        values = self.model_dump(mode="json", by_alias=True)
        if self.schema_version >= CHECKSUM_SCHEMA:
            values["sha256"] = _checksum(values)
        return json.dumps(values, indent=1, allow_nan=False) + "\n"


def _checksum(values: dict[str, Any]) -> str:
    """Return a hash of the values and not of the text, so that a record may be reformatted."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _as_stored(trial: Trial) -> dict[str, Any]:
    return {"id": trial.id} | trial.model_dump(mode="json")


def _parsed(text: str | bytes) -> Any:
    """Parse JSON with the fast parser, and with the other one, whose messages are better, if that fails."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"a record must not contain {constant}")


@dataclass(frozen=True)
class Failure:
    """A failed attempt at a trial: an exception, or a worker that died or made no progress.

    Attributes:
        traceback: all that is known; its last line is the summary.
        state: the state of a trial whose last attempt this is. A ``timeout`` depends on the machine and is
            not a result.
        unwritable: the error of a disk that did not accept what the trial wrote. The run ends then, and
            the trial does not count as failed.
    """

    traceback: str
    state: FailureState = "failed"
    unwritable: Unwritable | None = field(default=None, compare=False)

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Return the failure of an exception."""
        unwritable = error if isinstance(error, Unwritable) else None
        return cls("".join(tracebacks.format_exception(error)), unwritable=unwritable)

    @classmethod
    def hang(cls, stacks: str, seconds: float, times: int) -> Self:
        """Return the failure of a trial that made no progress for ``seconds``, ``times`` times."""
        return cls(f"{stacks}{TIMEOUT_PREFIX}{seconds:g} s, {times} times on this trial", "timeout")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read the result of ``as_text``, or that of earlier versions, which has no line with the state."""
        first, _, traceback = text.partition("\n")
        for state in get_args(FailureState):
            if first == f"{STATE_PREFIX}{state}":
                return cls(traceback, state)
        return cls(text, "timeout" if cls(text).reason.startswith(TIMEOUT_PREFIX) else "failed")

    def as_text(self) -> str:
        """Return the stored form."""
        return f"{STATE_PREFIX}{self.state}\n{self.traceback}"

    @property
    def reason(self) -> str:
        """Return the last line, which summarizes the failure."""
        return (self.traceback.strip().splitlines() or ["no reason given"])[-1]


def _unreadable(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or error}"


class Interrupted(Exception):  # not an error: the trial was asked to stop
    """A trial that stopped on request; its state is saved, and the next run continues from there."""


class RecordsInUse(RuntimeError):
    """A results directory that another runner has locked."""


@dataclass(frozen=True)
class Store:
    """The records of an experiment, in ``<results>/<experiment>/``. Only writing needs the lock."""

    directory: Path

    def record_path(self, trial_id: str) -> Path:
        """Return the path of the record of a trial."""
        return self.directory / f"{trial_id}.json"

    def error_path(self, trial_id: str) -> Path:
        """Return the path of a trial's last failed attempt."""
        return self.directory / f"{trial_id}{ERROR}"

    def weights_prefix(self, trial_id: str) -> Path:
        """Return the path of a trial's weights without the suffix, which is that of their format."""
        return self.directory / trial_id

    def weights(self, trial_id: str) -> Path | None:
        """Return the file of a trial's weights, or None if they were not kept."""
        paths = (self.directory / f"{trial_id}{suffix}" for suffix in (SAFETENSORS, PICKLED))
        return next((path for path in paths if path.exists()), None)

    def checkpoint_path(self, trial_id: str) -> Path:
        """Return the path prefix of a trial's checkpoints."""
        return self.directory / "checkpoints" / trial_id

    @property
    def choices_path(self) -> Path:
        """The path of what tuning has chosen."""
        return self.directory / CHOICES

    def saved_states(self) -> set[str]:
        """Return the ids of trials with a checkpoint, which may turn out to be damaged."""
        return {slot.name.partition(".")[0] for slot in (self.directory / "checkpoints").glob("*.ckpt")}

    def save(self, record: Record, has_weights: bool = False) -> None:
        """Write a record, which makes its trial done, and remove its earlier error and its checkpoints.

        Args:
            record: of the trial.
            has_weights: its weights are there; without, those of an earlier record are removed.

        Raises:
            OSError: the record could not be written; the trial is not done.
        """
        trial_id = record.trial.id
        while not has_weights and (stale := self.weights(trial_id)):
            stale.unlink()
        write_atomically(self.record_path(trial_id), record.to_json().encode())
        self.error_path(trial_id).unlink(missing_ok=True)
        prefix = self.checkpoint_path(trial_id)
        for slot in prefix.parent.glob(f"{prefix.name}.*"):
            slot.unlink(missing_ok=True)

    def save_error(self, trial_id: str, failure: Failure) -> None:
        """Write why a trial failed; the next run tries it again."""
        write_atomically(self.error_path(trial_id), failure.as_text().encode(errors="backslashreplace"))

    def errors(self) -> dict[str, Failure]:
        """Return the last failed attempts by trial id."""
        return {path.name.removesuffix(ERROR): self.error(path) for path in self._files(ERROR)}

    @staticmethod
    def error(path: Path) -> Failure:
        """Read a failed attempt; if that fails, return why."""
        try:
            return Failure.from_text(path.read_text("utf-8", errors="replace"))
        except OSError as error:
            return Failure(_unreadable(error))

    def _files(self, suffix: str) -> list[Path]:
        """List the files with a suffix, by name."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(suffix) and entry.is_file()]
            return [self.directory / name for name in sorted(names) if name != CHOICES]
        return []

    def load(
        self, trials: Iterable[Trial] = (), *, strict: bool = False
    ) -> tuple[dict[str, Record], dict[Path, str]]:
        """Read all records.

        Args:
            trials: trials whose records probably exist; these are read faster than others.
            strict: raise errors of the system and newer records, so that no such trial is trained again.

        Returns:
            The records by trial id, and for every other file what is wrong with it, or a ``Requirement``.

        Raises:
            OSError: ``strict`` and a file cannot be read; names it.
            NewerRecordError: ``strict`` and a later version of normbench wrote a record; names its file.
        """
        records: dict[str, Record] = {}
        damaged: dict[Path, str] = {}
        expected = {trial.id: trial for trial in trials}
        for path in self._files(".json"):
            try:
                record = Record.from_json(path.read_bytes(), expected.get(path.stem))
                if record.trial.id != path.stem:
                    raise ValueError(f"its settings give the trial id {record.trial.id}")
                records[path.stem] = record
            except RequirementError as error:
                if strict and isinstance(error, NewerRecordError):
                    raise NewerRecordError(f"{path}: needs {error}") from None
                damaged[path] = Requirement(error)
            except ValueError as error:
                damaged[path] = str(error).partition("\n")[0]
            except OSError as error:
                if strict:
                    error.filename = str(path)
                    raise
                damaged[path] = _unreadable(error)
        return records, damaged

    def set_aside(self, records: Iterable[Path], folder: str = "corrupt") -> None:
        """Move records and their weights to a subfolder: their trials run again, and nothing is lost."""
        directory = self.directory / folder
        weights = ((path, self.weights(path.stem)) for path in records)
        for path in (path for pair in weights for path in pair if path is not None):
            directory.mkdir(exist_ok=True)
            names = itertools.chain([path.name], (f"{path.name}.{number}" for number in itertools.count(2)))
            path.replace(next(directory / name for name in names if not (directory / name).exists()))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory for one runner; the system releases the lock when the runner dies.

        Raises:
            RecordsInUse: another runner holds the lock; the message names it.
        """
        is_new = not self.directory.exists()
        owner = self.directory / ".owner"

        def refuse(how_to_free: str) -> None:
            name = owner.read_text("utf-8", "replace").strip() if owner.exists() else "another process"
            raise RecordsInUse(f"{self.directory} is in use by {name}{how_to_free}")

        with locked(self.directory, "--results DIR", refuse):
            try:
                try:
                    owner.write_text(f"process {os.getpid()} on {platform.node()}\n", "utf-8")
                except OSError as error:
                    error.filename = str(owner)  # a failed write does not say where
                    raise
                self._tidy()
                yield
            finally:
                owner.unlink(missing_ok=True)
                if is_new:
                    remove_if_unused(self.directory)  # while the lock is held

    def _tidy(self) -> None:
        """Remove unfinished files of killed processes, and checkpoints of trials that are done.

        A checkpoint newer than its trial's record is of a later attempt, which continues from there.
        """
        checkpoints = self.directory / "checkpoints"
        for directory in (self.directory, checkpoints):
            for temporary in directory.glob(".*.tmp"):
                temporary.unlink(missing_ok=True)
        for slot in checkpoints.glob("*.ckpt"):
            record = self.record_path(slot.name.partition(".")[0])
            if record.exists() and slot.stat().st_mtime_ns <= record.stat().st_mtime_ns:
                slot.unlink(missing_ok=True)
