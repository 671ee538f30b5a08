"""A stand-in for the Weights & Biases server, on this machine: it answers the client and keeps what was sent."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT = "team", "oicsr"
VIEWER = {"id": "u", "entity": ENTITY, "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
_HISTORY = "wandb-history.jsonl"
NO_MORE = {"__typename": "PageInfo", "endCursor": "", "hasNextPage": False}


class StandIn(ThreadingHTTPServer):
    """The server; `runs`, `streams` and `reports` hold what the client sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.streams: dict[str, list[dict[str, Any]]] = {}
        self.reports: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.unknown: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the client leaves connections when it ends."""

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def history(self, run: str) -> list[dict[str, Any]]:
        """Return the points that a run has logged."""
        sent = [part["files"][_HISTORY] for part in self.streams[run] if _HISTORY in part.get("files", {})]
        return [json.loads(line) for file in sent for line in file["content"]]

    def answer(self, query: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a GraphQL query."""
        for words, answer in ANSWERS.items():
            if words in query:
                return dict(answer(self, sent))
        self.unknown.append(" ".join(query.split())[:200])
        return {}


def _run(server: StandIn, sent: dict[str, Any]) -> dict[str, Any]:
    kept = server.runs.setdefault(sent["name"], {})
    kept.update({name: value for name, value in sent.items() if value is not None})
    project = {"name": sent.get("project", PROJECT), "entity": {"name": sent.get("entity", ENTITY)}}
    bucket = {"id": sent["name"], "name": sent["name"], "displayName": sent.get("displayName"), "project": project}
    return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}


def _files(server: StandIn, sent: dict[str, Any]) -> dict[str, Any]:
    files = [{"name": name, "uploadUrl": f"{server.address}/upload/{name}"} for name in sent["files"]]
    return {"createRunFiles": {"runID": sent["run"], "uploadHeaders": [], "files": files}}


def _artifact(server: StandIn, sent: dict[str, Any]) -> dict[str, Any]:
    """Take an artifact for one that is there already: nothing is uploaded."""
    server.artifacts.append(sent["input"])
    number = f"artifact{len(server.artifacts)}"
    sequence = {"id": f"of {number}", "latestArtifact": {"id": number, "versionIndex": 0}}
    return {"createArtifact": {"artifact": {"id": number, "state": "COMMITTED", "artifactSequence": sequence}}}


def _report(server: StandIn, sent: dict[str, Any]) -> dict[str, Any]:
    server.reports.append(sent | {"spec": json.loads(sent["spec"])})
    project = {"id": "1", "name": sent["projectName"], "entityName": sent["entityName"]}
    shown = {name: sent[name] for name in ("type", "name", "displayName", "description", "spec")}
    view = shown | {"id": f"report{len(server.reports)}", "project": project, "updatedAt": "2026-01-01T00:00:00"}
    return {"upsertView": {"view": view, "inserted": True}}


def _projects(server: StandIn, sent: dict[str, Any]) -> dict[str, Any]:
    dated = {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
    node = {"__typename": "Project", "id": "1", "name": PROJECT, "entityName": ENTITY} | dated
    return {"models": {"edges": [{"node": node, "cursor": "1"}], "pageInfo": NO_MORE}}


ANSWERS: dict[str, Any] = {
    "query Viewer": lambda server, sent: {"viewer": VIEWER},
    "query ProjectInternalId": lambda server, sent: {"project": {"id": "1", "internalId": "1"}},
    "query GetProjects": _projects,
    "mutation upsertView": _report,
    "mutation UpsertBucket": _run,
    "mutation CreateRunFiles": _files,
    "mutation CreateArtifact ": _artifact,
    "query ArtifactType": lambda server, sent: {"project": {"artifact": None}},
}


class Handler(BaseHTTPRequestHandler):
    """GraphQL, the stream of a run's history, and uploads."""

    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *values: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Keep what was sent, and answer."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            sent = json.loads(body)
            answer = {"data": self.server.answer(sent["query"], sent.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.streams.setdefault(self.path.split("/")[-2], []).append(json.loads(body))
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_PUT = do_GET = do_POST


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Serve until the end of the block."""
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
