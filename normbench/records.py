"""Records: one finished trial is one JSON file, and the file's existence is what "done" means."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError, model_serializer, model_validator

from normbench.trial import Frozen, Trial

SCHEMA = 1
Status = Literal["done", "diverged", "out_of_memory"]


class Epoch(Frozen):
    """One epoch. Accuracies are fractions; a loss that is not finite, and a test that was not made, are None."""

    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    lr: float = Field(description="learning rate of the epoch's last step")
    seconds: float


class Final(Frozen):
    """The numbers a trial is judged by: never the best epoch, which would be chosen on the test set."""

    test_accuracy: float = Field(description="of the last epoch")
    test_accuracy_median5: float = Field(description="median of the last five evaluations")


class Record(Frozen):
    """What one trial gave: its settings, its course, its end and where it ran."""

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    trial: Trial
    status: Status
    epochs: tuple[Epoch, ...]
    final: Final | None = Field(None, description="None unless the status is 'done'")
    failure: dict[str, Any] | None = Field(None, description="where a trial that is not 'done' ended")
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
            settings = dict(values["trial"])
            stored = settings.pop("id", None)
            trial = Trial.model_validate_json(json.dumps(settings))
            if stored not in (None, trial.id):
                raise ValueError(f"its trial id is {stored}, its settings give {trial.id}")
            values = values | {"trial": trial}
        return values

    @model_serializer(mode="wrap")
    def _with_id(self, plain: Any) -> dict[str, Any]:
        values: dict[str, Any] = plain(self)
        return values | {"trial": {"id": self.trial.id} | values["trial"]}

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a record back.

        Raises:
            ValueError: the text is not a whole, valid record of this schema.
        """
        values = json.loads(text)
        if isinstance(values, dict) and isinstance(values.get("schema"), int) and values["schema"] > SCHEMA:
            raise ValueError(f"written by a newer normbench (record schema {values['schema']}, this one reads {SCHEMA})")
        return cls.model_validate_json(text) if not isinstance(values, dict) else cls.model_validate(values, strict=False)

    def to_json(self) -> str:
        """The record as it is stored."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Failure:
    """An attempt at a trial that gave no record: an exception, or a worker that died."""

    traceback: str

    @property
    def reason(self) -> str:
        """The last line: what happened, in short."""
        return self.traceback.strip().splitlines()[-1]


class Interrupted(Exception):  # noqa: N818  # not an error: the trial was asked to stop
    """A trial stopped where it was told to; its state is saved, and it goes on from there next time."""


class RecordsInUse(RuntimeError):
    """Another runner holds this results directory."""


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``: whole or not at all, whatever happens meanwhile.

    Raises:
        OSError: it could not be written; what was at ``path`` before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY)  # the rename itself is durable only once the directory is
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@dataclass(frozen=True)
class Store:
    """The records of one experiment: ``<results>/<experiment>/``. Reading needs no lock, writing one."""

    directory: Path

    def record_path(self, trial_id: str) -> Path:
        """Where the record of a trial lies, if it is done."""
        return self.directory / f"{trial_id}.json"

    def error_path(self, trial_id: str) -> Path:
        """Where the traceback of a trial's last failed attempt lies."""
        return self.directory / f"{trial_id}.error.txt"

    def checkpoint_path(self, trial_id: str) -> Path:
        """Where a running trial keeps its state."""
        return self.directory / "checkpoints" / trial_id

    def save(self, record: Record) -> None:
        """Store a record, after which its trial is done; its earlier error and its checkpoints go.

        Raises:
            OSError: the record could not be written; the trial is not done.
        """
        trial_id = record.trial.id
        write_atomically(self.record_path(trial_id), record.to_json().encode())
        self.error_path(trial_id).unlink(missing_ok=True)
        checkpoints = self.checkpoint_path(trial_id)
        for slot in checkpoints.parent.glob(f"{trial_id}*"):
            slot.unlink(missing_ok=True)

    def save_error(self, trial_id: str, traceback: str) -> None:
        """Keep why a trial failed; it stays missing and is tried again by the next run."""
        write_atomically(self.error_path(trial_id), traceback.encode())

    def error(self, trial_id: str) -> str | None:
        """The traceback of a trial's last failed attempt, or None."""
        path = self.error_path(trial_id)
        return path.read_text() if path.exists() else None

    def load(self) -> tuple[dict[str, Record], dict[Path, str]]:
        """All readable records by trial id, and for each unreadable file what is wrong with it."""
        records, damaged = {}, {}
        for path in sorted(self.directory.glob("*.json")):
            try:
                record = Record.from_json(path.read_bytes())
                if record.trial.id != path.stem:
                    raise ValueError(f"its settings give the trial id {record.trial.id}")
                records[path.stem] = record
            except (ValueError, ValidationError) as error:
                damaged[path] = str(error).splitlines()[0]
        return records, damaged

    def set_aside(self, damaged: Iterable[Path]) -> None:
        """Move unreadable records to ``corrupt/``, so that their trials run again and nothing is lost."""
        for path in damaged:
            target = self.directory / "corrupt" / path.name
            target.parent.mkdir(exist_ok=True)
            path.replace(target)

    def discard(self, trial_id: str) -> None:
        """Forget a record, so that its trial runs again."""
        self.record_path(trial_id).unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one runner; the system frees it when the runner dies, however it dies.

        Raises:
            RecordsInUse: another runner holds it; the message names that runner.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        owner = self.directory / ".owner"
        lock = FileLock(self.directory / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            name = owner.read_text().strip() if owner.exists() else "another process"
            raise RecordsInUse(f"{self.directory} is in use by {name}") from None
        try:
            owner.write_text(f"process {os.getpid()} on {os.uname().nodename}\n")
            for left_over in self.directory.glob(".*.tmp"):
                left_over.unlink(missing_ok=True)
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()
