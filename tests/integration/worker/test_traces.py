"""A job's spans, as a collector gets them from real processes: submit → queue → claim → run → finish in one trace."""

import signal

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from orchestrator.client import Client
from orchestrator.domain.job import JobState
from tests.support.api_process import start_api
from tests.support.cluster import Cluster
from tests.support.collector import Collector

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def test_a_job_is_one_trace_from_its_submit_to_its_end(
    cluster: Cluster, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's trace goes on in the api and the worker, and the job's own spans would hang below its run."""
    api, url = start_api(cluster, traces=True)
    worker = cluster.worker("a", traces=True)
    monkeypatch.setenv("TRACEPARENT", TRACEPARENT)
    with Client(url, cluster.token) as client:
        job_id = client.submit({"argv": ["sh", "-c", "echo $TRACEPARENT; exit 3"], "gpus": 1})["id"]
    cluster.wait_for_state(job_id, JobState.FAILED)
    for process in (api, worker):
        process.stop(signal.SIGTERM)  # what was not sent yet is sent at the end

    submit, queue, claim, run, finish = map(collector.named, ("submit", "queue", "claim", "run", "finish"))
    assert {span.trace_id.hex() for span in (submit, queue, claim, run, finish)} == {TRACE}
    assert submit.parent_span_id.hex() == PARENT
    assert queue.parent_span_id == claim.parent_span_id == run.parent_span_id == submit.span_id
    assert finish.parent_span_id == run.span_id
    assert queue.end_time_unix_nano == claim.start_time_unix_nano
    assert claim.start_time_unix_nano < claim.end_time_unix_nano == run.start_time_unix_nano
    assert run.end_time_unix_nano == finish.start_time_unix_nano
    told = {one.key.removeprefix("orchestrator."): one.value for one in claim.attributes}
    assert (told["job_id"].string_value, told["attempt"].int_value, told["token"].int_value) == (job_id, 1, 1)
    told = {one.key.removeprefix("orchestrator."): one.value for one in run.attributes}
    assert (told["job_id"].string_value, told["attempt"].int_value) == (job_id, 1)
    assert (told["outcome"].string_value, told["exit_code"].int_value) == ("fail", 3)
    assert run.status.code == Status.STATUS_CODE_ERROR
    assert cluster.output(job_id).strip() == f"00-{TRACE}-{run.span_id.hex()}-01"
    assert {service for service, _span in collector.spans} == {"gpu-orchestrator-api", "gpu-orchestrator-worker"}


def test_without_traces_the_context_travels_and_nothing_is_sent(cluster: Cluster, collector: Collector) -> None:
    """A job still joins the trace of whoever submitted it, and one submitted in none has no such variable."""
    _, url = start_api(cluster)
    cluster.worker("a")
    body = {"argv": ["sh", "-c", "echo ${TRACEPARENT-none}"]}

    def submit(**headers: str) -> str:
        answer = httpx.post(f"{url}/jobs/submit", json=body, headers=cluster.authorized | headers, trust_env=False)
        return str(answer.json()["id"])

    inside, outside, garbled = submit(traceparent=TRACEPARENT), submit(), submit(traceparent="no trace")
    cluster.wait_for_end([inside, outside, garbled])

    assert cluster.output(inside).strip() == TRACEPARENT
    assert cluster.output(outside).strip() == cluster.output(garbled).strip() == "none"
    assert collector.spans == []
