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

SCHEMA: Literal[5] = 5  # earlier ones knew fewer of the settings in trial.ADDED and trial.CHANGED
SEALED = 4  # the first with a checksum
ERROR = ".error.txt"
Status = Literal["done", "diverged", "out_of_memory"]
Standing = Literal["failed", "timeout"]
STANDING = "state: "  # begins the first line of a stored failure
HANG = "timeout: no step for "  # begins the last line of a hang's, by which alone earlier versions knew it


class Finite(Frozen):
    """No number in it is infinite or NaN, which JSON does not know."""

    model_config = ConfigDict(allow_inf_nan=False)


class Epoch(Finite):
    """One epoch. Accuracies are fractions; what was not measured is None."""

    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    lr: float = Field(description="learning rate of the epoch's last step")
    seconds: float


class Final(Finite):
    """The numbers a trial is judged by: never the best epoch, which would be chosen on the test set."""

    test_accuracy: float = Field(description="of the last epoch")
    test_accuracy_median5: float = Field(description="median of the last five evaluations")


class Measured(Finite):
    """One result of one evaluation of the trained network."""

    name: str = Field(description="of the evaluation")
    options: dict[str, int | str] = Field({}, description="its options, and what tells its results apart")
    numbers: dict[str, int | float | None] = Field(description="None: not finite")

    @model_validator(mode="after")
    def _as_before(self) -> Self:
        """Older results of ``precise`` do not name their estimator, since there was only one."""
        if self.name == "precise":
            self.options.setdefault("variance", CHANGED["evaluate.variance"])
        return self


class NewerRecordError(ValueError):
    """A later version of normbench wrote this record. Nothing is wrong with it, but it cannot be read."""


class LackingError(ValueError):
    """A record names a method or the like that this normbench does not have. Nothing is wrong with it."""


class Lacking(str):
    """What is lacking to read a record, where :meth:`Store.load` says what is wrong with others."""

    __slots__ = ()


def complaints(unreadable: Mapping[Path, str], consequence: str) -> list[str]:
    """A line for every damaged record, and one for all that lack the same thing, which stay where they are.

    Args:
        unreadable: as :meth:`Store.load` gives it.
        consequence: what is done about a damaged one.
    """
    lacking = Counter(problem for problem in unreadable.values() if isinstance(problem, Lacking))
    lines = [
        f"{path}: not a valid record, {consequence} ({problem})"
        for path, problem in unreadable.items()
        if not isinstance(problem, Lacking)
    ]
    for problem, count in lacking.items():
        records = "1 record needs" if count == 1 else f"{count} records need"
        where = next(path for path, other in unreadable.items() if other == problem).parent
        lines.append(f"{where}: {records} {problem}, left out")
    return lines


class Record(Finite):
    """What one trial gave: its settings, its course, its end and where it ran."""

    schema_version: Literal[1, 2, 3, 4, 5] = Field(SCHEMA, alias="schema")
    trial: Annotated[
        Trial, WrapValidator(lambda given, check: given if isinstance(given, Trial) else check(given))
    ]
    status: Status
    epochs: tuple[Epoch, ...]
    final: Final | None = Field(None, description="None unless the status is 'done'")
    failure: dict[str, Any] | None = Field(None, description="where a trial that is not 'done' ended")
    inference: tuple[Measured, ...] = Field((), description="by the trial's ``evaluate``, if it is 'done'")
    images_per_second: float | None
    seconds: float
    peak_memory_bytes: int
    diagnostics: dict[str, Any]
    data: str = Field(description="content hash of the decoded data set")
    provenance: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _without_id(cls, values: Any) -> Any:
        """The id is derived from the trial; a stored one must be the derived one."""
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
        """Read a record back.

        Args:
            text: as ``to_json`` gives it.
            expected: its trial, probably; where it is to the letter, it need not be checked anew.

        Raises:
            NewerRecordError: a later version of normbench wrote it.
            LackingError: it names a method, model or the like that this normbench does not have.
            ValueError: the text is not a whole, valid record of this schema.
        """
        try:
            values = _parsed(text)
        except RecursionError:
            raise ValueError("nested too deeply for a record") from None
        if not isinstance(values, dict):
            raise ValueError("not a record: expected a JSON object")
        checksum, schema = values.pop("sha256", None), values.get("schema")
        sealed = checksum is not None or (isinstance(schema, int) and schema >= SEALED)
        if sealed and checksum != _checksum(values):
            raise ValueError("its checksum does not agree with its content")
        if isinstance(schema, int) and schema > SCHEMA:
            words = f"needs a newer normbench: its schema is {schema}, this one reads {SCHEMA}"
            raise NewerRecordError(words)
        if expected is not None and to_json(values.get("trial")) == to_json(_as_stored(expected)):
            values["trial"] = expected
        try:
            return cls.model_validate(values, strict=False)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "unknown":
                about = first["ctx"]
                lacking = f"the {about['kind']} {about['name']}, which this normbench does not have"
                raise LackingError(lacking) from None
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None

    def to_json(self) -> str:
        """The record as it is stored: from schema ``SEALED`` on with a checksum of its values."""
        values = self.model_dump(mode="json", by_alias=True)
        if self.schema_version >= SEALED:
            values["sha256"] = _checksum(values)
        return json.dumps(values, indent=1, allow_nan=False) + "\n"


def _checksum(values: dict[str, Any]) -> str:
    """Of the values and not of the text, so that a record may be formatted anew."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _as_stored(trial: Trial) -> dict[str, Any]:
    return {"id": trial.id} | trial.model_dump(mode="json")


def _parsed(text: str | bytes) -> Any:
    """The fast parser's result; what it does not take, the other takes or refuses in plain words."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number that a record may hold")


@dataclass(frozen=True)
class Failure:
    """An attempt at a trial that gave no record: an exception, or a worker that died or made no progress.

    Attributes:
        traceback: what is known of it; the last line says it in short.
        state: how a trial stands of which this is the last attempt. A ``timeout`` is no result: it depends on
            the machine.
        unwritable: the disk would not take what the trial wrote. The run cannot go on then, and the trial
            is no failed one.
    """

    traceback: str
    state: Standing = "failed"
    unwritable: Unwritable | None = field(default=None, compare=False)

    @classmethod
    def of(cls, error: Exception) -> Self:
        """The failure that an exception is."""
        unwritable = error if isinstance(error, Unwritable) else None
        return cls("".join(tracebacks.format_exception(error)), unwritable=unwritable)

    @classmethod
    def hang(cls, stacks: str, seconds: float, times: int) -> Self:
        """The failure that no progress is, for so long and so many times."""
        return cls(f"{stacks}{HANG}{seconds:g} s, {times} times on this trial", "timeout")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what ``as_text`` gave, in this version or before there was a first line with the state."""
        first, _, traceback = text.partition("\n")
        for state in get_args(Standing):
            if first == f"{STANDING}{state}":
                return cls(traceback, state)
        return cls(text, "timeout" if cls(text).reason.startswith(HANG) else "failed")

    def as_text(self) -> str:
        """As it is stored."""
        return f"{STANDING}{self.state}\n{self.traceback}"

    @property
    def reason(self) -> str:
        """The last line: what happened, in short."""
        return (self.traceback.strip().splitlines() or ["it gave no reason"])[-1]


def _unreadable(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or error}"


class Interrupted(Exception):  # not an error: the trial was asked to stop
    """A trial stopped where it was told to; its state is saved, and it goes on from there next time."""


class RecordsInUse(RuntimeError):
    """Another runner holds this results directory."""


@dataclass(frozen=True)
class Store:
    """The records of one experiment: ``<results>/<experiment>/``. Reading needs no lock, writing one."""

    directory: Path

    def record_path(self, trial_id: str) -> Path:
        """Where the record of a trial lies, if it is done."""
        return self.directory / f"{trial_id}.json"

    def error_path(self, trial_id: str) -> Path:
        """Where a trial's last failed attempt lies."""
        return self.directory / f"{trial_id}{ERROR}"

    def checkpoint_path(self, trial_id: str) -> Path:
        """Where a running trial keeps its state."""
        return self.directory / "checkpoints" / trial_id

    def saved_states(self) -> set[str]:
        """The trials that have a state to go on from, by id. (Whether it is whole shows when it is read.)"""
        return {slot.name.partition(".")[0] for slot in (self.directory / "checkpoints").glob("*.ckpt")}

    def save(self, record: Record) -> None:
        """Store a record, after which its trial is done; its earlier error and its checkpoints go.

        Raises:
            OSError: the record could not be written; the trial is not done.
        """
        trial_id = record.trial.id
        write_atomically(self.record_path(trial_id), record.to_json().encode())
        self.error_path(trial_id).unlink(missing_ok=True)
        prefix = self.checkpoint_path(trial_id)
        for slot in prefix.parent.glob(f"{prefix.name}.*"):
            slot.unlink(missing_ok=True)

    def save_error(self, trial_id: str, failure: Failure) -> None:
        """Keep why a trial failed; it stays missing and is tried again by the next run."""
        write_atomically(self.error_path(trial_id), failure.as_text().encode(errors="backslashreplace"))

    def errors(self) -> dict[str, Failure]:
        """The last failed attempts by trial id."""
        return {path.name.removesuffix(ERROR): self.error(path) for path in self._files(ERROR)}

    @staticmethod
    def error(path: Path) -> Failure:
        """The failed attempt in a file; that it cannot be read, where it cannot."""
        try:
            return Failure.from_text(path.read_text("utf-8", errors="replace"))
        except OSError as error:
            return Failure(_unreadable(error))

    def _files(self, suffix: str) -> list[Path]:
        """In the order of their names."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            names = [each.name for each in entries if each.name.endswith(suffix) and each.is_file()]
            return [self.directory / name for name in sorted(names)]
        return []

    def load(
        self, trials: Iterable[Trial] = (), *, strict: bool = False
    ) -> tuple[dict[str, Record], dict[Path, str]]:
        """All readable records by trial id, and for each other file what is wrong with it.

        Args:
            trials: whose records are probably there; these are read faster than others.
            strict: take no file that the system does not let us read for a damaged one: it may be whole.

        Raises:
            OSError: ``strict`` and such a file; names it.
            NewerRecordError: names the file. (To take it for damaged would be to train it again.)
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
            except NewerRecordError as error:
                raise NewerRecordError(f"{path}: {error}") from None
            except LackingError as error:
                damaged[path] = Lacking(error)
            except ValueError as error:
                damaged[path] = str(error).partition("\n")[0]
            except OSError as error:
                if strict:
                    error.filename = str(path)
                    raise
                damaged[path] = _unreadable(error)
        return records, damaged

    def set_aside(self, records: Iterable[Path], folder: str = "corrupt") -> None:
        """Move records to a folder beside them, so that their trials run again and nothing is lost."""
        aside = self.directory / folder
        for path in records:
            aside.mkdir(exist_ok=True)
            names = itertools.chain([path.name], (f"{path.name}.{number}" for number in itertools.count(2)))
            path.replace(next(aside / name for name in names if not (aside / name).exists()))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one runner; the system frees it when the runner dies, however it dies.

        Raises:
            RecordsInUse: another runner holds it; the message names that runner.
        """
        made = not self.directory.exists()
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
                if made:
                    remove_if_unused(self.directory)  # while it is held: nobody else can hold this one

    def _tidy(self) -> None:
        """Remove what killed processes left half-written, and checkpoints that outlived their trials.

        A checkpoint newer than its trial's record is of another attempt at it, which goes on from there.
        """
        checkpoints = self.directory / "checkpoints"
        for directory in (self.directory, checkpoints):
            for left_over in directory.glob(".*.tmp"):
                left_over.unlink(missing_ok=True)
        for slot in checkpoints.glob("*.ckpt"):
            record = self.record_path(slot.name.partition(".")[0])
            if record.exists() and slot.stat().st_mtime_ns <= record.stat().st_mtime_ns:
                slot.unlink(missing_ok=True)
