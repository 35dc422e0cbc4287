"""What ``/metrics`` says, as numbers by name and labels."""

from collections import defaultdict
from collections.abc import Mapping
from typing import TypeAlias

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

Labels: TypeAlias = frozenset[tuple[str, str]]
Samples: TypeAlias = Mapping[str, Mapping[Labels, float]]


def samples_of(text: str) -> Samples:
    """Return every sample, under the name by which a query asks for it."""
    found: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name][frozenset(sample.labels.items())] = sample.value
    return found


def scrape(client: TestClient) -> Samples:
    """Ask an app."""
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return samples_of(answer.text)


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return one sample; a series that is not there is 0, as it is before the first time."""
    return samples.get(name, {}).get(frozenset(labels.items()), 0.0)
