"""Figures of a running server, for Prometheus. Must not hold values of attributes: labels are routes, methods and statuses."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ["method", "route"]
        self._requests = Counter("pixels_requests", "Requests answered.", [*labels, "status"], registry=self._registry)
        self._seconds = Histogram(
            "pixels_request_seconds",
            "Time until the last byte of the answer.",
            labels,
            registry=self._registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
        )
        self._bytes = Counter("pixels_sent_bytes", "Bytes of answers.", labels, registry=self._registry)
        self._in_flight = Gauge("pixels_requests_in_flight", "Requests being answered.", registry=self._registry)
        self.stored = Counter("pixels_stored_objects", "Objects that clients stored.", ["outcome"], registry=self._registry)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request while it is being answered."""
        self._in_flight.inc()
        try:
            yield
        finally:
            self._in_flight.dec()

    def answered(self, method: str, route: str, status: int, seconds: float, size: int) -> None:
        """Count an answered request."""
        method = method if method in _METHODS else "OTHER"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
        self._bytes.labels(method, route).inc(size)

    def gauge(self, name: str, meaning: str, value: float) -> None:
        """Set a figure that is read when the metrics are."""
        known = self._registry._names_to_collectors.get(name)
        gauge = known if isinstance(known, Gauge) else Gauge(name, meaning, registry=self._registry)
        gauge.set(value)

    def text(self) -> bytes:
        """All figures, in Prometheus' text format."""
        return generate_latest(self._registry)
