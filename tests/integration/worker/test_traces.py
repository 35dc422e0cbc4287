"""A job's spans, as a collector gets them from real processes: submit → queue → run → finish in one trace."""

import gzip
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from orchestrator.client import Client
from orchestrator.domain.job import JobState
from tests.support.cluster import Cluster, Process
from tests.support.servers import free_port
from tests.support.waiting import wait_for

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Collector:
    """Takes OTLP over HTTP and keeps the spans, each with the name of the service that sent it."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keep what was sent."""
        for sent in request.resource_spans:
            service = next(one.value.string_value for one in sent.resource.attributes if one.key == "service.name")
            self.spans += [(service, span) for scope in sent.scope_spans for span in scope.spans]

    def named(self, name: str) -> Span:
        """Return the one span of this name."""
        (found,) = [span for _service, span in self.spans if span.name == name]
        return found


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that processes started from here send to."""
    made = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    yield made
    made.server.shutdown()
    made.server.server_close()


def start_api(cluster: Cluster, **settings: object) -> tuple[Process, str]:
    """Start an api process and return it with its URL once it answers."""
    port = free_port()
    process = cluster.spawn("api", ["orchestrator_cli", "api", "--port", str(port)], **settings)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/healthz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    wait_for(answers, within_seconds=30, describe=process.tail)
    return process, url


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

    submit, queue, run, finish = (collector.named(name) for name in ("submit", "queue", "run", "finish"))
    assert {span.trace_id.hex() for span in (submit, queue, run, finish)} == {TRACE}
    assert submit.parent_span_id.hex() == PARENT
    assert queue.parent_span_id == run.parent_span_id == submit.span_id
    assert finish.parent_span_id == run.span_id
    assert queue.end_time_unix_nano == run.start_time_unix_nano
    assert run.end_time_unix_nano == finish.start_time_unix_nano
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
