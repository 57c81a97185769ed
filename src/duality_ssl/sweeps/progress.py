"""How far a sweep is: a table in a terminal, a line for each run that has ended elsewhere."""

import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from duality_ssl.sweeps.rows import Row, summary
from duality_ssl.sweeps.runs import Run

_REDRAW = 0.5  # seconds
_STATES = ("done", "failed", "running", "waiting")


class Progress:
    """Shows what runs, is done, has failed, and the time left.

    Args:
        runs: All runs of the phase.
        finished: Those of them that earlier sweeps have done.
        at_once: Runs at once.
        seconds: What each earlier run took, if known.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        finished: Sequence[Run],
        at_once: int,
        seconds: Sequence[float] = (),
    ) -> None:
        self._state = dict.fromkeys((run.key for run in runs), "waiting")
        self._state |= dict.fromkeys((run.key for run in finished), "done")
        self._runs = runs
        self._at_once = at_once
        self._seconds = [*seconds]
        self._started: dict[str, float] = {}
        self._terminal = sys.stdout.isatty()
        self._drawn = 0  # lines of the table that stand at the end of the screen
        self._next = 0.0

    def ended(self, run: Run, row: Row) -> None:
        """Print the line of a run that has ended."""
        self._state[run.key] = "failed" if "error" in row else "done"
        self._started.pop(run.key, None)
        if "error" not in row:
            self._seconds.append(row["seconds"])
        over = sum(state in ("done", "failed") for state in self._state.values())
        self._erase()
        count = f"[{over:{len(str(len(self._state)))}}/{len(self._state)}]"
        sys.stdout.write(f"{count} {run.title}: {summary(row)}\n")
        sys.stdout.flush()
        self._next = 0.0

    def running(self, runs: Sequence[Run]) -> None:
        """Redraw the table in a terminal, from time to time."""
        now = time.monotonic()
        for key in self._started.keys() - {run.key for run in runs}:
            del self._started[key]
            self._state[key] = "waiting"
        for run in runs:
            self._started.setdefault(run.key, now)
            self._state[run.key] = "running"
        if self._terminal and now >= self._next:
            self._erase()
            columns = shutil.get_terminal_size().columns - 1
            table = [line[:columns] for line in self.table(runs, now)]
            sys.stdout.write("".join(f"{line}\n" for line in table))
            sys.stdout.flush()
            self._drawn, self._next = len(table), now + _REDRAW

    def close(self) -> None:
        """Leave the lines of the runs on the screen, without the table."""
        self._erase()
        sys.stdout.flush()

    def table(self, running: Sequence[Run], now: float) -> list[str]:
        """The table: a line for each label of the first axis, one for each run that is done now."""
        counts: dict[str, Counter[str]] = {}
        for run in self._runs:
            label = str(next(iter(run.cell.values()), run.sweep))
            counts.setdefault(label, Counter())[self._state[run.key]] += 1
        width = max(map(len, [*counts, "all"]))
        total = sum(counts.values(), Counter())
        lines = ["", f"{'':{width}}" + "".join(f"{state:>9}" for state in _STATES)]
        for label, count in [*counts.items(), ("all", total)]:
            lines.append(
                f"{label:{width}}" + "".join(f"{count[each] or '-':>9}" for each in _STATES)
            )
        for run in running:
            seconds = now - self._started[run.key]
            lines.append(f"running  {run.title}  {duration(seconds)}  {last_epoch(run.log)}")
        return [*lines, f"time left: {self._time_left(running, now)}"]

    def _time_left(self, running: Sequence[Run], now: float) -> str:
        seconds = self._seconds or [*self._expected(running, now)]
        if not seconds:
            return "known after an epoch"
        mean = sum(seconds) / len(seconds)
        waiting = sum(state == "waiting" for state in self._state.values())
        rest = [max(0.0, mean - (now - started)) for started in self._started.values()]
        return f"about {duration((waiting * mean + sum(rest)) / self._at_once)}"

    def _expected(self, running: Sequence[Run], now: float) -> Iterator[float]:
        """Seconds that each run will take, by its epochs so far."""
        for run in running:
            if found := re.match(r"epoch (\d+)/(\d+)", last_epoch(run.log)):
                yield (now - self._started[run.key]) * int(found[2]) / int(found[1])

    def _erase(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0


def duration(seconds: float) -> str:
    """Seconds in words: ``42 s``, ``7 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def last_epoch(log: Path) -> str:
    """The line that a run has printed of its last epoch."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 500))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.startswith("epoch ")), "")
