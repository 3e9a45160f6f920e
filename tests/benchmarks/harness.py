"""What the benchmarks share: interleaved rounds, medians, figures with their bounds, a table.

Absolute times travel badly between machines, ratios travel well. Every bound is therefore on a
ratio, and both of its sides are measured in the same process, in turns, so that whatever else the
machine does meanwhile meets both.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.

    Attributes:
        name: what was measured.
        value: how much.
        unit: of what.
        at_most: the bound from above, if there is one.
        at_least: the bound from below, if there is one.
    """

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def kept(self) -> bool:
        """It is within its bounds."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    @property
    def bound(self) -> str:
        """The bound in words."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else ""


def interleave(subjects: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Run every subject once a round, in turns; return the median of what each returns."""
    for run in subjects.values():
        run()  # caches, imports, the first segment
    measured: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds):
        names = list(subjects)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            measured[name].append(subjects[name]())
    return {name: median(values) for name, values in measured.items()}


def report(title: str, figures: list[Figure]) -> bool:
    """Print figures as a table and as one line of JSON; return whether every bound was kept."""
    table = Table(title=title, title_justify="left")
    for column, justify in (("", "left"), ("figure", "right"), ("", "left"), ("bound", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for figure in figures:
        colour = "" if figure.bound == "" else "green" if figure.kept else "red"
        table.add_row(figure.name, shown(figure.value), figure.unit, figure.bound, style=colour)
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    print(json.dumps({"title": title, "machine": machine(), "figures": list(map(asdict, figures))}))
    return all(figure.kept for figure in figures)


def shown(value: float) -> str:
    """Return a figure with three digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> str:
    """Return what the figures depend on."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
