"""What was read of a model: a `Reading`, as a table, a figure, a frame, JSON, a notebook's page.

`measuring.measure` makes it. What cannot be had of a model is None, and `absent` says why.
"""

import base64
import dataclasses
import html
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from dirasym import files, intervals, readers, reading_figure, report, usage
from dirasym.analysis.attention import DistanceCorrelation
from dirasym.intervals import Bounds

Kind = Literal["causal", "masked"]
SHARES = ("accuracy", "begun", "copied", "choice")
MEASURES = (*SHARES, "p_true", "nll", "rank")
_LABELS = {
    **{name: f"{name} %" for name in SHARES},
    "p_true": "p(true first token)",
    "nll": "its −log p, nats",
    "rank": "its rank, median",
}
_FORMAT = 1


class Asked(NamedTuple):
    """One question and what the model made of it; the measures are those of `Direction`.

    `choice` is NaN where it cannot be asked.
    """

    prompt: str
    answers: tuple[str, ...]
    said: str
    accuracy: float
    begun: float
    copied: float
    choice: float
    p_true: float
    nll: float
    rank: float


@dataclasses.dataclass(frozen=True)
class Direction:
    """What a model makes of the questions of one direction, each with its interval.

    Attributes:
      accuracy: share of questions that are answered with a right answer and nothing else.
      begun: share whose answer begins with a right one.
      copied: share whose answer repeats words of the question.
      choice: share where a right first token is more probable than those of all other answers of
        this direction, of the questions where that can be asked (see `recall.choice_among`).
      p_true: mean probability of the right first token.
      nll: mean −log of it, in nats.
      rank: median of 1 + the number of tokens that are more probable.
      count: questions.
      asked: each of them; () in a reading of several parameter sets.
    """

    accuracy: Bounds
    begun: Bounds
    copied: Bounds
    choice: Bounds | None
    p_true: Bounds
    nll: Bounds
    rank: Bounds
    count: int
    asked: tuple[Asked, ...] = ()

    @classmethod
    def of(cls, asked: Sequence[Asked], level: float) -> "Direction":
        """Shares with Wilson's interval, the mean p and nll and the median rank by bootstrap."""
        found: dict[str, Bounds | None] = {}
        for name in SHARES:
            values = np.array([getattr(one, name) for one in asked])
            values = values[~np.isnan(values)]
            found[name] = None
            if len(values):
                found[name] = intervals.wilson_interval(int(values.sum()), len(values), level)
        for name in ("p_true", "nll", "rank"):
            middle = np.median if name == "rank" else np.mean
            values = np.array([getattr(one, name) for one in asked])
            found[name] = intervals.bootstrap_interval(values, middle, level)
        return cls(**found, count=len(asked), asked=tuple(asked))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Gradients:
    """The gradients of the forward and the reverse question of each pair, compared.

    Means over pairs, with bootstrap intervals, per block and in "total"; see
    `analysis.alignment.Alignment`. A block whose gradient is zero has no cosine.

    Attributes:
      cosine, inner, norm_fwd, norm_rev: by block.
      roles: cosine by role, "storage" and "routing".
      count: pairs.
    """

    cosine: dict[str, Bounds]
    inner: dict[str, Bounds]
    norm_fwd: dict[str, Bounds]
    norm_rev: dict[str, Bounds]
    roles: dict[str, Bounds]
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """All that was read of a model; see `dirasym.measure`.

    Attributes:
      kind: "causal" or "masked".
      level: of confidence of all intervals.
      over: what intervals are over, "pairs", or "sets" of parameters.
      forward, reverse: questions of either direction.
      alignment: gradients compared, or None.
      attention: how scores from [M] to a name after it and before it are correlated, or None.
      absent: from what is not here to why.
      seconds: from each part of the work to the time that it took.
      of_sets: of several parameter sets, the reading of each.
      notes: what else is to be known of the model; they stand below the table.
    """

    kind: Kind
    level: float
    over: Literal["pairs", "sets"]
    forward: Direction
    reverse: Direction
    alignment: Gradients | None = None
    attention: DistanceCorrelation | None = None
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    of_sets: tuple["Reading", ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def storage(self) -> Bounds | None:
        """Cosine of the gradients of values, output projections and MLPs (2602.02133v2)."""
        return self.alignment.roles.get("storage") if self.alignment else None

    @property
    def routing(self) -> Bounds | None:
        """Cosine of the gradients of queries and keys."""
        return self.alignment.roles.get("routing") if self.alignment else None

    @property
    def attention_correlation(self) -> np.ndarray | None:
        """Corr(S_fwd, S_rev) over names: [layer, head, total], at `attention.total` distances."""
        return self.attention.mean if self.attention else None

    @classmethod
    def over_sets(cls, readings: Sequence["Reading"]) -> "Reading":
        """The mean of readings of one model with several parameter sets, Student's intervals.

        These are symmetric, and may leave [0, 1]; those of shares and probabilities are printed cut
        off there.

        Raises:
          ValueError: fewer than two, or readings of different questions.
        """
        return _over_sets(readings)

    def to_json(self) -> dict[str, Any]:
        """The reading as JSON holds it; numbers that are not finite are "nan", "inf", "-inf"."""
        return {"format": _FORMAT, **_plain(self)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Reading":
        """The inverse of `to_json`. Raises ValueError for what is no reading."""
        try:
            return _from_plain(fields)
        except KeyError as error:
            raise ValueError(f"this is no reading: it has no {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"this is no reading: {error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Writes the reading as JSON."""
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=1)
        files.write_atomically(pathlib.Path(path), text + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Reading":
        """Reads what `save` wrote. Raises ValueError, naming the file, for anything else."""
        fields = readers.read_json(pathlib.Path(path))
        try:
            return cls.from_json(fields)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reading) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def to_frame(self) -> Any:
        """A pandas DataFrame: part, name, estimate, low, high, a row a number.

        Raises:
          ImportError: pandas is missing; says which extra has it.
        """
        pandas = usage.optional("pandas", "frames")
        rows = [(part, name, *bounds) for part, name, bounds in self._numbers()]
        return pandas.DataFrame(rows, columns=["part", "name", "estimate", "low", "high"])

    def _numbers(self) -> Iterator[tuple[str, str, Bounds]]:
        for side in ("forward", "reverse"):
            for name in MEASURES:
                if (bounds := getattr(getattr(self, side), name)) is not None:
                    yield side, name, bounds
        if self.alignment is not None:
            for name in ("cosine", "inner", "norm_fwd", "norm_rev"):
                for block, bounds in getattr(self.alignment, name).items():
                    yield name, block, bounds
            for role, bounds in self.alignment.roles.items():
                yield "role cosine", role, bounds
        if self.attention is not None:
            for place in np.ndindex(self.attention.mean.shape):
                layer, head, total = place
                name = f"layer {layer}, head {head}, distance {self.attention.total[total]}"
                values = (x[place] for x in self.attention[1:])
                yield "attention correlation", name, Bounds(*map(float, values))

    def __str__(self) -> str:
        tables = (report.table(header, rows) for header, rows in self._tables())
        return "\n\n".join([self._title(), *tables, *self._notes()])

    def _title(self) -> str:
        sets = f" (mean of {len(self.of_sets)} sets)" if self.of_sets else ""
        over = f"value ({self.level:.0%} interval over {self.over})"
        return f"{self.kind} model{sets}, {self.counts()}; {over}"

    def counts(self) -> str:
        """How many questions there are: `8 questions forward, 8 in reverse`."""
        plural = "s" * (self.forward.count != 1)
        return f"{self.forward.count} question{plural} forward, {self.reverse.count} in reverse"

    def chosen(self) -> dict[str, str]:
        """By direction, of how many questions its choice is ("2 of 3"), where not of all."""
        first, *_ = self.of_sets or [self]  # all are asked the same
        found = {}
        for name, side in (("forward", first.forward), ("reverse", first.reverse)):
            asked = sum(not np.isnan(one.choice) for one in side.asked)
            if 0 < asked < side.count:
                found[name] = f"{asked} of {side.count}"
        return found

    def _notes(self) -> list[str]:
        why = "in the others it begins several answers or stands in the question"
        few = [f"{n} choice by first token, of {of}: {why}" for n, of in self.chosen().items()]
        absent = [f"no {n}: {why}" for n, why in self.absent.items() if "asked for" not in why]
        return [*few, *self.notes, *absent]

    def _tables(self) -> Iterator[tuple[list[str], list[list[str]]]]:
        sides = (self.forward, self.reverse)
        yield (
            ["", "forward", "reverse"],
            [[_LABELS[n], *(_shown(getattr(side, n), n) for side in sides)] for n in MEASURES],
        )
        if self.alignment is not None:
            both = self.alignment.roles | self.alignment.cosine
            rows = [[name, _shown(bounds, "cosine")] for name, bounds in both.items()]
            yield ["gradients of", f"cosine of both directions, {self.alignment.count} pairs"], rows
        if self.attention is not None:
            what = "Corr(S_fwd, S_rev), mean over heads, at total distance Δ₁ + Δ₂ (tokens) of"
            header = [what, *map(str, self.attention.total)]
            mean_LT = self.attention.mean.mean(axis=1)
            yield header, [[f"layer {n}", *(f"{x:.2f}" for x in r)] for n, r in enumerate(mean_LT)]

    def _repr_html_(self) -> str:
        return _page(self)

    def figure(self, path: str | os.PathLike | None = None) -> Any:
        """Shares of either direction; cosines by block and correlations by distance if there are.

        Args:
          path: where to save it too, such as "reading.png".

        Raises:
          ImportError: matplotlib is missing; says which extra has it.
        """
        figure = reading_figure.draw(self, SHARES)
        if path is not None:
            figure.savefig(path, dpi=160)
        return figure


def _over_sets(readings: Sequence[Reading]) -> Reading:
    first, *others = readings
    questions = [[[a[:2] for a in d.asked] for d in (r.forward, r.reverse)] for r in readings]
    if not others or any(q != questions[0] for q in questions):
        raise ValueError("several readings of the same questions are needed")
    level = first.level
    forward = _combined([r.forward for r in readings], level, asked=())
    reverse = _combined([r.reverse for r in readings], level, asked=())
    gradients = [r.alignment for r in readings]
    coupled = [r.attention for r in readings if r.attention is not None]
    attention = None
    if len(coupled) == len(readings):
        means = np.stack([one.mean for one in coupled])
        bounds = np.apply_along_axis(
            lambda x: intervals.student_interval(x, level).bounds, 0, means
        )
        attention = DistanceCorrelation(coupled[0].total, *bounds)
    return Reading(
        first.kind,
        level,
        "sets",
        forward,
        reverse,
        alignment=None if None in gradients else _combined(gradients, level),
        attention=attention,
        absent={k: v for r in readings for k, v in r.absent.items()},
        seconds={k: sum(r.seconds.get(k, 0.0) for r in readings) for k in first.seconds},
        of_sets=tuple(readings),
    )


def _page(reading: Reading) -> str:
    """The tables and the figure as HTML."""
    parts = [f"<p>{html.escape(reading._title())}</p>"]
    for header, rows in reading._tables():
        lines = [("th", header), *(("td", row) for row in rows)]
        cells = (
            "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in lines
        )
        parts.append("<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>")
    parts += [f"<p>{html.escape(note)}</p>" for note in reading._notes()]
    if report.can_draw():
        png = io.BytesIO()
        reading.figure().savefig(png, format="png", dpi=100)
        image = base64.b64encode(png.getvalue()).decode()
        parts.append(f'<img src="data:image/png;base64,{image}">')
    return "".join(parts)


def _combined(parts: Sequence[Any], level: float, **fixed: Any) -> Any:
    """One dataclass of the numbers of several: means over them with Student's intervals."""

    def mean(values):
        if any(value is None for value in values):
            return None
        return intervals.student_interval([value.estimate for value in values], level).bounds

    found: dict[str, Any] = dict(fixed)
    one, *_ = parts
    for field in (x.name for x in dataclasses.fields(one) if x.name not in fixed):
        values = [getattr(part, field) for part in parts]
        first, *_ = values
        if isinstance(first, dict):
            names = [name for name in first if all(name in value for value in values)]
            found[field] = {name: mean([v[name] for v in values]) for name in names}
        else:
            found[field] = first if field == "count" else mean(values)
    return type(one)(**found)


def _shown(bounds: Bounds | None, name: str) -> str:
    if bounds is None:
        return "–"
    factor, digits = (100, 1) if name in SHARES else (1, 1 if name == "rank" else 3)
    if name in (*SHARES, "p_true"):  # Student's interval over sets knows no ends of a share
        bounds = Bounds(*np.clip(bounds, 0, 1))
    estimate, low, high = (f"{factor * x:.{digits}f}" for x in bounds)
    return estimate if np.isnan(bounds.low) else f"{estimate} ({low}, {high})"


def _plain(value: Any) -> Any:
    """Anything of a reading as JSON."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, DistanceCorrelation):
        return {name: _plain(array.tolist()) for name, array in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else str(float(value))
    return value


def _check_plain(fields: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the key, for what no reading says of itself."""
    known = dict(kind=get_args(Kind), over=("pairs", "sets"))
    for name, values in known.items():
        if fields[name] not in values:
            raise ValueError(f"{name} must be one of {', '.join(values)}, got {fields[name]!r}")
    level = fields["level"]
    if not isinstance(level, int | float) or not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}")
    for name in ("forward", "reverse"):
        if not isinstance(fields[name], Mapping):
            raise ValueError(f"{name} must hold the measures of a direction, got {fields[name]!r}")


def _from_plain(fields: Mapping[str, Any]) -> Reading:
    if fields.get("format", _FORMAT) != _FORMAT:
        raise ValueError(f"format {fields['format']!r} is not known")

    _check_plain(fields)

    def bounds(name, numbers):
        if numbers is None and name == "choice":
            return None
        if not isinstance(numbers, list | tuple) or len(numbers) != 3:
            raise ValueError(f"{name} must be an estimate and two ends, got {numbers!r}")
        return Bounds(*map(float, numbers))

    def direction(part) -> Direction:
        asked = [
            Asked(prompt, tuple(answers), said, *map(float, numbers))
            for prompt, answers, said, *numbers in part["asked"]
        ]
        measures = {name: bounds(name, part[name]) for name in MEASURES}
        return Direction(**measures, count=int(part["count"]), asked=tuple(asked))

    alignment, attention = fields["alignment"], fields["attention"]
    if alignment is not None:
        by_block = {
            name: {block: bounds(f"{name} of {block}", x) for block, x in alignment[name].items()}
            for name in ("cosine", "inner", "norm_fwd", "norm_rev", "roles")
        }
        alignment = Gradients(**by_block, count=int(alignment["count"]))
    if attention is not None:
        arrays = [np.array(attention[name], float) for name in DistanceCorrelation._fields]
        attention = DistanceCorrelation(arrays[0].astype(int), *arrays[1:])
    return Reading(
        fields["kind"],
        float(fields["level"]),
        fields["over"],
        direction(fields["forward"]),
        direction(fields["reverse"]),
        alignment=alignment,
        attention=attention,
        absent=dict(fields["absent"]),
        seconds={name: float(x) for name, x in fields["seconds"].items()},
        of_sets=tuple(map(_from_plain, fields["of_sets"])),
        notes=tuple(map(str, fields.get("notes", ()))),
    )
