"""Scrapes of metrics, as a Prometheus server reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from routing.metrics import exposition

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(ledgers: Iterable[Any], **options: Any) -> Samples:
    """Return the samples of an exposition by name and labels."""
    body, content_type = exposition(ledgers, **options)
    assert content_type.startswith("text/plain")
    return parsed(body.decode())


def parsed(text: str) -> Samples:
    """Return the samples of a text; each is in it once."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float | None:
    """Return the value of a sample, None if there is none."""
    return samples.get((name, frozenset(labels.items())))


def names(text: str) -> set[str]:
    """Return the names under which a text has samples, or could have: those of metrics without a value too."""
    found = set()
    for family in text_string_to_metric_families(text):
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return found
