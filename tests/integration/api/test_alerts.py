"""The alerts for Prometheus ask for what ``/metrics`` tells, and say what to do."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from orchestrator.runtime import Runtime
from tests.support.eventful import Eventful
from tests.support.exposition import scrape

ROOT = Path(__file__).parents[3]
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"] for rule in group["rules"]
]
_SELECTOR = re.compile(r"(gpu_orchestrator_[a-z_]+)(?:\{([^}]*)\})?")
_BY = re.compile(r"\bby \(([^)]*)\)")
#: What the product is asked to warn of; each is the name of an alert, less its prefix.
EXPECTED = {
    *("Silent", "ServerDown", "NobodyLeads", "AdmitStale", "SweepsFail", "LeasesExpire", "LeaseSilent"),
    *("AttemptsLost", "WritesRefused", "HostsDegraded", "DeadLetters", "Retries", "JobsPending", "SafeMode"),
    *("LeaseRequestsDenied", "GpusUnhealthy", "GpuMemory", "PoolFails", "PoolEvictions", "Pools"),
}


def known_labels(api: TestClient, runtime: Runtime) -> Mapping[str, set[str]]:
    """Return each metric's labels, in an installation in which everything has happened."""
    Eventful(api, runtime).everything()
    return {name: {label for one in series for label, _ in one} for name, series in scrape(api).items()}


def test_every_alert_asks_for_what_is_told(api: TestClient, runtime: Runtime) -> None:
    """An alert on a metric or label that nobody exposes never fires."""
    known = known_labels(api, runtime)
    for rule in RULES:
        asked = _SELECTOR.findall(rule["expr"])
        assert asked, rule["alert"]
        for metric, matchers in asked:
            assert metric in known, rule["alert"]
            assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= known[metric], rule["alert"]
        labels = {label for metric, _ in asked for label in known[metric]}
        by = {label.strip() for said in _BY.findall(rule["expr"]) for label in said.split(",")}
        assert by <= labels, rule["alert"]
        told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert told <= by, f"{rule['alert']}: what is not asked by is not there to be named"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: Mapping[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)

    assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert rule["annotations"]["summary"]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}


def test_the_alerts_are_those_that_are_asked_for() -> None:
    names = [rule["alert"].removeprefix("GpuOrchestrator") for rule in RULES]
    assert len(names) == len(set(names))
    assert set(names) == EXPECTED


def test_no_alert_counts_the_installation_once_for_each_api() -> None:
    """Several apis tell the same of it; only what each process counts by itself is summed as it is."""
    by_process = {"gpu_orchestrator_lease_requests_total"}
    for rule in RULES:
        for metric, _ in _SELECTOR.findall(rule["expr"]):
            if metric not in by_process and "absent" not in rule["expr"]:
                reduced = rf"\b(?:max|min)(?: by \([^)]*\))?\s*\((?:increase\()?{metric}\b"
                assert re.search(reduced, rule["expr"]), rule["alert"]
