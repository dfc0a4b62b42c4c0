"""What a server has done, as a page that Prometheus reads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from .scheduler import Pool

if TYPE_CHECKING:
    from .server import Server, _Visit

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
_RECENT = 1000  # requests whose latencies give percentiles
_QUANTILES = (0.5, 0.9, 0.99)
_WINDOW = 10.0  # seconds over which patches a second are counted


class Metrics:
    """Counts of one server, and its page.

    Args:
        server: Asked when the page is read.
        pools: Likewise.
    """

    def __init__(self, server: Server, pools: Sequence[Pool]):
        self.server, self.pools, self.lock = server, list(pools), threading.Lock()
        self.requests: dict[tuple[str, str], int] = {}
        self.buckets, self.total = [0] * (len(_BOUNDS) + 1), 0.0
        self.recent: deque[float] = deque(maxlen=_RECENT)
        self.samples: deque[tuple[float, int]] = deque()
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.page = None

    def serve(self, port: int | None) -> int | None:
        """Open the page on the loopback; None leaves it closed."""
        if port is None:
            return None
        self.page, _ = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        return self.page.server_address[1]

    def close(self) -> None:
        """Close the page."""
        if self.page is not None:
            self.page.shutdown()
            self.page.server_close()

    def count(self, visit: _Visit) -> None:
        """Take a finished connection into account."""
        name = visit.story.get("model") or visit.story["kind"]
        name = name if name in self.server.models or name in ("info", "none") else "unknown"  # no names from the wire
        seconds = visit.marks.get("sent")
        with self.lock:
            key = (name, visit.story["outcome"])
            self.requests[key] = self.requests.get(key, 0) + 1
            if visit.story["kind"] == "inference" and visit.story["outcome"] == "ok":
                self.recent.append(seconds)
                self.total += seconds
                place = next((i for i, bound in enumerate(_BOUNDS) if seconds <= bound), len(_BOUNDS))
                self.buckets[place] += 1

    def text(self) -> str:
        """The page."""
        return generate_latest(self.registry).decode()

    def collect(self) -> Iterator[object]:
        """What Prometheus asks for."""
        server = self.server
        with self.lock:
            requests, buckets, total = dict(self.requests), list(self.buckets), self.total
            recent = sorted(self.recent)
        counted = CounterMetricFamily("i2i_requests", "Connections, by model and outcome.", labels=["model", "outcome"])
        for (model, outcome), number in sorted(requests.items()):
            counted.add_metric([model, outcome], number)
        yield counted
        running, pairs = 0, []
        for bound, number in zip([*map(str, _BOUNDS), "+Inf"], buckets, strict=True):
            running += number
            pairs.append((bound, running))
        seconds = HistogramMetricFamily("i2i_request_seconds", "From connection to the end of the reply, of runs.")
        seconds.add_metric([], pairs, total)
        yield seconds
        told = f"Percentiles of the last {_RECENT} runs."
        latency = GaugeMetricFamily("i2i_recent_request_seconds", told, labels=["quantile"])
        for quantile in _QUANTILES:
            if recent:
                latency.add_metric([str(quantile)], recent[min(int(quantile * len(recent)), len(recent) - 1)])
        yield latency
        counts = ("patches", "batches", "places")
        patches, batches, places = (sum(getattr(pool, name) for pool in self.pools) for name in counts)
        yield CounterMetricFamily("i2i_patches", "Patches that went through a network.", value=patches)
        yield CounterMetricFamily("i2i_batches", "Batches that they went in.", value=batches)
        fill = patches / places if places else 0.0
        yield GaugeMetricFamily("i2i_batch_fill", "Patches over places in batches, 0 to 1.", value=fill)
        rate = self._rate(patches)
        yield GaugeMetricFamily("i2i_patches_per_second", "Between the last pages, ten seconds or more.", value=rate)
        waiting = sum(pool.waiting for pool in self.pools)
        yield GaugeMetricFamily("i2i_patches_waiting", "Patches that wait for a runner.", value=waiting)
        slots = len(server.large.line) + len(server.small.line)
        yield GaugeMetricFamily("i2i_requests_waiting", "Requests that wait for a slot.", value=slots)
        yield GaugeMetricFamily("i2i_connections", "Connections that are open.", value=len(server.visits))
        yield GaugeMetricFamily("i2i_message_bytes", "Bytes of requests and replies held.", value=server.memory.used)

    def _rate(self, patches: int) -> float:
        """Patches a second since a page some ten seconds ago."""
        now = time.monotonic()
        with self.lock:
            self.samples.append((now, patches))
            while len(self.samples) > 2 and now - self.samples[1][0] >= _WINDOW:
                self.samples.popleft()
            first, count = self.samples[0]
        return (patches - count) / (now - first) if now > first else 0.0
