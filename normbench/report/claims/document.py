"""Claims as data: a sentence of a document, the experiment that tests it, and the comparison that decides.

One YAML file holds the claims of one document, or those of a user. It is as strict as an experiment's file:
everything wrong in it is reported at once, each by line and column. A claim names settings and numbers, never
code.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from normbench.config import experiment as config
from normbench.config.grid import TRIAL_KEYS
from normbench.config.inherit import Files, Unreadable
from normbench.config.messages import validate
from normbench.config.registry import UnknownName, conflict
from normbench.config.source import Issue, Node, Position
from normbench.config.trial import Frozen
from normbench.report.claims.cells import Cells, cells_of
from normbench.report.claims.comparison import COMPOSED, Test
from normbench.report.claims.errors import CellError
from normbench.report.metrics import metric, task_metric
from normbench.text import did_you_mean, printable

FOLDER = Path("configs/claims")  # of a clone, where commands are run in it


class Published(Frozen):
    """A number that somebody else published, drawn as a hollow mark beside the measured ones."""

    label: str
    source: str
    at: Mapping[str, float] = Field(description="the number by the value of the axis, or of the side")


class ClaimSettings(Frozen):
    """One claim as it is written in a file."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]
    says: Annotated[str, Field(min_length=1)] = Field(description="the sentence, in English")
    original: str = Field("", description="the sentence in its own language")
    source: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = Field(
        description="where it stands: documents, each perhaps with a place in it"
    )
    experiment: str | None = Field(None, description="file of the experiment, relative to this file")
    test: Test | None = None
    not_run: str = Field("", description="why there is no test yet")
    scope: str = Field("", description="what the sentence speaks of that the experiment does not show")
    published: Annotated[tuple[Published, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _has_a_test_or_says_why_not(self) -> Self:
        if (self.test is None) == (not self.not_run):
            raise conflict("a claim has either a 'test', or says in 'not_run' why it has none", "test", "id")
        return self


class _Document(Frozen):
    """The top level of a file."""

    document: str = Field(description="short name, such as D1")
    title: str
    claims: Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]


@dataclass(frozen=True)
class Claim:
    """A checked claim.

    Attributes:
        settings: as it is written.
        document: short name of the document of its file.
        experiments: by the name that a test writes (None: that of the claim), the experiment that it means.
        title: of the document.
    """

    settings: ClaimSettings
    document: str
    experiments: Mapping[str | None, config.Experiment]
    title: str = ""

    @property
    def id(self) -> str:
        """Its name among all claims."""
        return self.settings.id

    @property
    def test(self) -> Test | None:
        """The comparison that decides it, if there is one yet."""
        return self.settings.test

    def experiment(self, test: Test) -> config.Experiment:
        """Return the experiment that one of its comparisons looks at."""
        return self.experiments[test.experiment]

    def cells(self, test: Test) -> Cells:
        """Return the cells that one of its comparisons looks at."""
        experiment = self.experiment(test)
        return cells_of(test, experiment.trials, experiment.tune)


def load(path: Path, read: dict[Path, config.Experiment] | None = None) -> tuple[Claim, ...]:
    """Read a file of claims.

    Args:
        path: a YAML file.
        read: experiments that were read before, by their file; those of this file are added.

    Raises:
        ConfigError: with everything that is wrong in it.
    """
    files = Files()
    try:
        root = files.document(path)
    except Unreadable as error:
        raise config.ConfigError(f"{printable(path)}: {error}", is_typed=True) from None
    problems = list(files.issues)
    if root is not None and not isinstance(root.value, dict):
        words = f"expected a mapping with the keys {', '.join(_Document.model_fields)}, got {root}"
        problems.append(Issue(root.position, words))
        root = None
    if root is None:
        raise config.config_error(problems)
    document, found, _ = validate(_Document, root)
    if document is None:
        raise config.config_error([*problems, *found])
    claims = []
    read = {} if read is None else read
    ids: dict[str, Position] = {}
    for node in root.value["claims"].value:
        settings, found = _checked(node)
        problems += found
        if settings is None:
            continue
        spot = node.value["id"].position
        if settings.id in ids:
            words = f"a second claim {settings.id}, first in line {ids[settings.id].line}"
            problems.append(Issue(spot, words))
        ids[settings.id] = spot
        experiments, found = _experiments(settings, node, path, read)
        settings = settings.model_copy(update={"test": _with_metric(settings.test, experiments)})
        claim = Claim(settings, document.document, experiments, document.title)
        problems += found
        problems += _problems(claim, node)
        claims.append(claim)
    if problems:
        raise config.config_error(problems)
    return tuple(claims)


def _checked(node: Node) -> tuple[ClaimSettings | None, list[Issue]]:
    if not isinstance(node.value, dict):
        return None, [Issue(node.position, f"expected a mapping with the keys of a claim, got {node}")]
    settings, found, _ = validate(ClaimSettings, node)
    return settings, found


def load_all(folder: Path = FOLDER) -> tuple[Claim, ...]:
    """Read every file of claims of a folder.

    Raises:
        ConfigError: with everything that is wrong in all of them, or there is none.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        words = f"{printable(folder)}: no files of claims; run this in a clone, or name a file"
        raise config.ConfigError(words, is_typed=True)
    return load_files(files)


def load_files(files: Iterable[Path]) -> tuple[Claim, ...]:
    """Read files of claims, no two of which have the same id.

    Raises:
        ConfigError: with everything that is wrong in all of them.
    """
    claims: dict[str, Claim] = {}
    problems: list[str] = []
    read: dict[Path, config.Experiment] = {}
    for file in files:
        try:
            for claim in load(file, read):
                if claim.id in claims:
                    problems.append(
                        f"{file}: a second claim {claim.id}, the first is of {claims[claim.id].document}"
                    )
                claims[claim.id] = claim
        except config.ConfigError as error:
            problems += error.problems
    if problems:
        raise config.ConfigError(*problems)
    return tuple(claims.values())


def _experiments(
    settings: ClaimSettings, node: Node, path: Path, read: dict[Path, config.Experiment]
) -> tuple[dict[str | None, config.Experiment], list[Issue]]:
    """The experiments that a claim names, by how it names them."""
    experiments: dict[str | None, config.Experiment] = {}
    problems: list[Issue] = []
    if settings.test is None:
        return experiments, problems
    for test, at in zip(settings.test.parts, _nodes(node.value["test"]), strict=True):
        name = test.experiment
        if name in experiments:
            continue
        written = at.value.get("experiment") if name else node.value.get("experiment")
        if written is None:
            words = "needs 'experiment', the file of the experiment that tests it"
            problems.append(Issue(node.position, f"claim {settings.id} {words}"))
            break
        try:
            file = path.parent / written.value
            experiments[name] = read[file] = read.get(file) or config.load(file)
        except config.ConfigError as error:
            problems.append(Issue(written.position, f"cannot be used: {error.problems[0]}"))
    return experiments, problems


def _with_metric(test: Test | None, experiments: Mapping[str | None, config.Experiment]) -> Test | None:
    """Return a test whose comparisons name the metric of their experiment's task, if they name none."""
    if test is None or "metric" in test.model_fields_set:
        return test
    if test.of:
        return test.model_copy(update={"of": tuple(_with_metric(part, experiments) for part in test.of)})
    trials = experiments[test.experiment].trials if test.experiment in experiments else ()
    names = {task_metric(trial).name for trial in trials}
    is_other = len(names) == 1 and test.metric not in names
    return test.model_copy(update={"metric": names.pop()}) if is_other else test


def _nodes(node: Node) -> Iterator[Node]:
    """The places of a test's comparisons, in the order of `Test.parts`."""
    if node.value["kind"].value not in COMPOSED:
        yield node
    else:
        for part in node.value["of"].value:
            yield from _nodes(part)


def _problems(claim: Claim, node: Node) -> Iterator[Issue]:
    """What a claim asks for that its experiments do not have."""
    if claim.test is None:
        return
    for test, at in zip(claim.test.parts, _nodes(node.value["test"]), strict=True):
        found = [*_of_keys(test, at)]
        yield from found
        if found or test.experiment not in claim.experiments:
            continue
        try:
            cells = claim.cells(test)
            test.on(cells.axis, {key: tuple(map(str, cells.axis)) for key in cells.sides})
        except CellError as error:
            yield Issue(_position(at, error.key), f"{error} (experiment {claim.experiment(test).name})")
        except ValueError as error:
            yield Issue(at.position, str(error))


def _of_keys(test: Test, at: Node) -> Iterator[Issue]:
    """Settings and metrics that do not exist."""
    names: dict[tuple[str, ...], str] = {("metric",): test.metric}
    for key, side in test.sides:
        names |= {(key, "metric"): side.metric} if side.metric else {}
        if side.constant is not None and (side.where or side.over or side.metric):
            yield Issue(at.value[key].position, "a 'constant' stands alone")
    for keys, name in names.items():
        try:
            metric(name)
        except UnknownName as error:
            yield Issue(_position(at, ".".join(keys)), str(error))
    settings: list[tuple[tuple[str, ...], str]] = [(("along",), test.along)] if test.along else []
    for key, side in test.sides:
        settings += [((key, name), getattr(side, name)) for name in ("spread", "best") if getattr(side, name)]
        settings += [((key, name), name) for name in side.where]
    for keys, name in settings:
        if name not in TRIAL_KEYS and not name.startswith("norm."):
            hint = did_you_mean(name, TRIAL_KEYS)
            yield Issue(_position(at, ".".join(keys)), f"unknown setting {name!r}{hint}")


def _position(node: Node, keys: str) -> Position:
    """Where a value of a test is written; the test itself where it is not."""
    for key in [keys] if keys in node.value else keys.split(".", 1):
        if not isinstance(node.value, dict) or key not in node.value:
            break
        node = node.value[key]
    return node.key or node.position
