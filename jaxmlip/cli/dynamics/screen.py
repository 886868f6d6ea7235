"""What a person sees of a run while it goes: a bar on a terminal, else a line now and then."""

import sys
import time

from jaxmlip.cli.output import note

EVERY = 30.0  # s between lines where there is no terminal


def watch():
    """A context that gives a function for `Progress`."""
    return (_Bar if sys.stderr.isatty() else _Lines)()


class _Common:
    """Drift by a straight line through what was seen in this session."""

    def __init__(self):
        self.seen = []

    def drift(self, p) -> float:
        """meV per atom and ps; NaN until there is a line."""
        import numpy as np

        self.seen.append((p.time * 1e-3, p.conserved * 1e3))
        if len(self.seen) < 3:
            return float("nan")
        if len(self.seen) > 2000:
            self.seen = self.seen[::2]
        t, e = np.array(self.seen).T
        return float(np.polyfit(t - t.mean(), e - e.mean(), 1)[0])

    def told(self, p) -> str:
        parts = [f"{p.time * 1e-3:.3g} ps", f"{p.temperature:.0f} K"]
        drift = self.drift(p)
        if drift == drift:
            parts.append(f"drift {drift:+.2g} meV/atom/ps")
        if p.ns_per_day == p.ns_per_day:
            parts.append(f"{p.ns_per_day:.3g} ns/day")
        return ", ".join(parts)


class _Lines(_Common):
    def __enter__(self):
        self.last = time.monotonic()
        return self.report

    def __exit__(self, *error):
        pass

    def report(self, p):
        told = self.told(p)
        for widened in p.widened:
            note(f"neighbour list too small, block repeated: {widened}")
        if time.monotonic() - self.last > EVERY or p.step == p.steps:
            self.last = time.monotonic()
            left = f", {clock(p.seconds_left)} left" if 0 < p.seconds_left < 1e8 else ""
            note(f"step {p.step}/{p.steps}: {told}{left}")


class _Bar(_Common):
    def __enter__(self):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.bar = Progress(
            TextColumn("{task.percentage:3.0f} %"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self.bar.__enter__()
        self.task = self.bar.add_task("compiling", total=None)
        return self.report

    def __exit__(self, *error):
        self.bar.__exit__(*error)

    def report(self, p):
        for widened in p.widened:
            self.bar.console.print(f"neighbour list too small, block repeated: {widened}")
        left = f", {clock(p.seconds_left)} left" if 0 < p.seconds_left < 1e8 else ""
        self.bar.update(
            self.task,
            total=p.steps,
            completed=p.step,
            description=f"{p.step}/{p.steps}  {self.told(p)}{left}",
        )


def clock(seconds: float) -> str:
    """`2 h 05 min`, `3 min`, `12 s`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
