"""Counters, gauges and histograms in Prometheus' text format.

    Metrics    a program's families;  counter(), gauge(), histogram() add one,  render() writes them all

Source: Prometheus' text exposition format 0.0.4.
"""

import bisect
import collections
import itertools
import threading
from typing import Callable, Dict, Iterator, List, Sequence, Tuple, TypeVar


def _sample(name: str, labels: Sequence[Tuple[str, str]], value: float) -> str:
    if labels:
        name += "{%s}" % ",".join('%s="%s"' % (key, _escape_label(text)) for key, text in labels)
    return "%s %s" % (name, "%d" % value if float(value).is_integer() else repr(float(value)))


def _escape_label(text: str) -> str:
    return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class _Metric:
    """One metric family: samples keyed by their label values."""

    def __init__(self, kind: str, name: str, help: str, labels: Tuple[str, ...]):
        self.kind, self.name, self.help, self.labels = kind, name, help, labels
        self._samples: Dict[Tuple[str, ...], float] = collections.defaultdict(float)
        self._lock = threading.Lock()  # guards _samples

    def inc(self, *labels: str, by: float = 1) -> None:
        """Add `by` to the sample with these label values."""
        with self._lock:
            self._samples[labels] += by

    def set(self, value: float, *labels: str) -> None:
        """Set the sample with these label values."""
        with self._lock:
            self._samples[labels] = value

    def clear(self) -> None:
        """Forget all samples, so that those of things that are gone are no longer shown."""
        with self._lock:
            self._samples.clear()

    def total(self) -> float:
        """Return the sum of all samples."""
        with self._lock:
            return sum(self._samples.values())

    def lines(self) -> Iterator[str]:
        """Yield the family in Prometheus' text format."""
        with self._lock:
            samples = sorted(self._samples.items())
        yield "# HELP %s %s" % (self.name, self.help)
        yield "# TYPE %s %s" % (self.name, self.kind)
        for values, value in samples or ([] if self.labels else [((), 0)]):
            yield _sample(self.name, list(zip(self.labels, values)), value)


class _Histogram(_Metric):
    """A metric family of observations in cumulative buckets."""

    def __init__(self, name: str, help: str, labels: Tuple[str, ...], buckets: Sequence[float]):
        super().__init__("histogram", name, help, labels)
        self._bounds = tuple(buckets)
        self._series: Dict[Tuple[str, ...], List[float]] = {}  # how many in each bucket, and their sum

    def observe(self, value: float, *labels: str) -> None:
        """Count one observation."""
        with self._lock:
            series = self._series.get(labels)
            if series is None:
                series = self._series[labels] = [0.0] * (len(self._bounds) + 2)
            series[bisect.bisect_left(self._bounds, value)] += 1
            series[-1] += value

    def observed(self) -> Tuple[int, float]:
        """Return how many observations there were, and their sum."""
        with self._lock:
            every = list(self._series.values())
            return int(sum(sum(series[:-1]) for series in every)), sum(series[-1] for series in every)

    def lines(self) -> Iterator[str]:
        """Yield the family in Prometheus' text format."""
        with self._lock:
            every = sorted((values, list(series)) for values, series in self._series.items())
        yield "# HELP %s %s" % (self.name, self.help)
        yield "# TYPE %s histogram" % self.name
        for values, series in every:
            labels = list(zip(self.labels, values))
            for bound, count in zip(self._bounds + (float("inf"),), itertools.accumulate(series[:-1])):
                le = "+Inf" if bound == float("inf") else "%g" % bound
                yield _sample(self.name + "_bucket", labels + [("le", le)], count)
            yield _sample(self.name + "_sum", labels, series[-1])
            yield _sample(self.name + "_count", labels, sum(series[:-1]))


M = TypeVar("M", bound=_Metric)
SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """A program's metrics. `collect` hooks run before each rendering, to set gauges from live state."""

    def __init__(self) -> None:
        self._families: List[_Metric] = []
        self._hooks: List[Callable[[], None]] = []

    def counter(self, name: str, help: str, *labels: str) -> _Metric:
        """Add a counter; its name should end in _total."""
        return self._add(_Metric("counter", name, help, labels))

    def gauge(self, name: str, help: str, *labels: str) -> _Metric:
        """Add a gauge."""
        return self._add(_Metric("gauge", name, help, labels))

    def histogram(self, name: str, help: str, *labels: str, buckets: Sequence[float] = SECONDS) -> _Histogram:
        """Add a histogram; its name should end in its unit."""
        return self._add(_Histogram(name, help, labels, buckets))

    def collect(self, hook: Callable[[], None]) -> None:
        """Call `hook` before each rendering."""
        self._hooks.append(hook)

    def render(self) -> str:
        """Return everything in Prometheus' text format."""
        for hook in self._hooks:
            hook()
        return "\n".join(line for family in self._families for line in family.lines()) + "\n"

    def _add(self, family: M) -> M:
        self._families.append(family)
        return family
