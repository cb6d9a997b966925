"""What wandb talks to online, small and on this machine: it keeps what arrives of each run."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import wandb

KEY = "k" * 40
ENTITY = "tests"


@dataclass
class Artifact:
    """A version of an artifact.

    :param name: of its collection.
    :param kind: its type.
    :param aliases: of this version.
    :param files: by name, their bytes, as far as they were asked for.
    """

    name: str
    kind: str
    aliases: list
    files: dict = field(default_factory=dict)
    committed: bool = False


@dataclass
class OnlineRun:
    """A run, as its page would show it.

    :param starts: how often a process has opened it.
    :param lines: of each streamed file, by place.
    """

    id: str
    variables: dict = field(default_factory=dict)
    starts: int = 0
    lines: dict = field(default_factory=dict)
    artifacts: list = field(default_factory=list)
    files: dict = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self):
        """The rows, in order; one that is missing is an error."""
        return self._rows("wandb-history.jsonl")

    @property
    def summary(self):
        """The last summary."""
        rows = self._rows("wandb-summary.json")
        return rows[-1] if rows else {}

    @property
    def config(self):
        """The configuration as a plain dictionary."""
        entries = json.loads(self.variables.get("config") or "{}")
        return {name: entry["value"] for name, entry in entries.items()}

    def series(self, name):
        """A metric's points: its place on the axis ``task``, and its value."""
        return [(row["task"], row[name]) for row in self.history if name in row]

    def _rows(self, file):
        lines = self.lines.get(file, {})
        assert sorted(lines) == list(range(len(lines))), f"{file} has holes"
        return [json.loads(lines[place]) for place in range(len(lines))]


class WandbServer(ThreadingHTTPServer):
    """Answers the requests of ``wandb.init``, ``log``, ``log_artifact`` and ``finish``."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runs: dict[str, OnlineRun] = {}
        self.artifacts: list[Artifact] = []
        self.lock = threading.RLock()

    # ------------------------------------------------------------------ what GraphQL asks

    def answer(self, operation, variables):
        """The data of an answer to an operation, or none where it is not known here."""
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower()
        method = getattr(self, f"_{name}", None)
        return None if method is None else method(variables)

    def _server_features_query(self, given):
        return {"serverInfo": {"features": []}}

    def _viewer(self, given):
        return {
            "viewer": {
                "id": "viewer",
                "entity": ENTITY,
                "username": ENTITY,
                "flags": "{}",
                "teams": {"edges": [{"node": {"name": ENTITY}}]},
            }
        }

    def _run_resume_status(self, given):
        run = self.runs.get(given["name"])
        if run is None:
            return {"model": {"id": "m", "name": given["project"], "entity": None, "bucket": None}}
        bucket = {
            "id": run.id,
            "name": run.id,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.variables.get("displayName"),
            "logLineCount": len(run.lines.get("output.log", {})),
            "historyLineCount": len(run.history),
            "eventsLineCount": len(run.lines.get("wandb-events.jsonl", {})),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "config": run.variables.get("config") or "{}",
            "tags": run.variables.get("tags") or [],
            "notes": None,
            "group": run.variables.get("groupName"),
            "wandbConfig": json.dumps({"t": 1}),
        }
        entity = {"id": "e", "name": ENTITY}
        return {"model": {"id": "m", "name": given["project"], "entity": entity, "bucket": bucket}}

    def _upsert_bucket(self, given):
        run = self.runs.setdefault(given["name"], OnlineRun(given["name"]))
        run.starts += given.get("host") is not None
        run.variables.update({name: value for name, value in given.items() if value is not None})
        project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": ENTITY}}
        bucket = {
            "id": run.id,
            "name": run.id,
            "displayName": run.variables.get("displayName") or run.id,
            "description": None,
            "config": run.variables.get("config") or "{}",
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": run.starts == 1}}

    def _create_run_files(self, given):
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/run/{given['run']}/{name}"}
            for name in given["files"]
        ]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _create_artifact(self, given):
        entry = given["input"]
        aliases = [alias["alias"] for alias in entry.get("aliases") or []]
        artifact = Artifact(entry["artifactCollectionName"], entry["artifactTypeName"], aliases)
        self.artifacts.append(artifact)
        self.runs[entry["runName"]].artifacts.append(artifact)
        made = {
            "id": str(len(self.artifacts) - 1),
            "state": "PENDING",
            "artifactSequence": {"id": "s", "latestArtifact": None},
        }
        return {"createArtifact": {"artifact": made}}

    def _create_artifact_manifest(self, given):
        return self._manifest("createArtifactManifest", given["artifactID"], given)

    def _update_artifact_manifest(self, given):
        return self._manifest("updateArtifactManifest", given["artifactManifestID"], given)

    def _manifest(self, name, artifact, given):
        file = {
            "id": "f",
            "name": "manifest",
            "displayName": "manifest",
            "uploadUrl": f"{self.url}/upload/artifact/{artifact}/wandb_manifest.json",
            "uploadHeaders": [],
        }
        return {name: {"artifactManifest": {"id": artifact, "file": file}}}

    def _create_artifact_files(self, given):
        nodes = [
            {
                "id": spec["name"],
                "name": spec["name"],
                "displayName": spec["name"],
                "storagePath": None,
                "uploadUrl": f"{self.url}/upload/artifact/{spec['artifactID']}/{spec['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": spec["artifactID"]},
            }
            for spec in given["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _commit_artifact(self, given):
        self.artifacts[int(given["artifactID"])].committed = True
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    # ------------------------------------------------------------------ what is streamed

    def stream(self, run, content):
        """Keep the lines of a run's files, and how it ended."""
        for name, chunk in (content.get("files") or {}).items():
            lines = self.runs[run].lines.setdefault(name, {})
            for place, line in enumerate(chunk["content"], chunk["offset"]):
                lines[place] = line
        if content.get("complete"):
            self.runs[run].exit_code = content.get("exitcode")

    def upload(self, kind, owner, name, content):
        """Keep a file."""
        files = self.artifacts[int(owner)].files if kind == "artifact" else self.runs[owner].files
        files[name] = content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        content = self._content()
        with self.server.lock:
            if self.path.endswith("/file_stream"):
                self.server.stream(self.path.split("/")[-2], json.loads(content))
                self._send({})
                return
            if self.path != "/graphql":  # wandb's measurements of itself
                self._send({})
                return
            asked = json.loads(content)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
            data = self.server.answer(operation, asked.get("variables") or {})
            error = {"errors": [{"message": f"{operation} is not known here"}]}
            self._send(error if data is None else {"data": data})

    def do_PUT(self):
        content = self._content()
        _, _, kind, owner, name = self.path.split("/", 4)
        with self.server.lock:
            self.server.upload(kind, owner, name, content)
        self._send({})

    def handle(self):
        with suppress(ConnectionError):  # a client that was killed
            super().handle()

    def log_message(self, *arguments):
        """Keep quiet."""

    def _content(self):
        size = self.headers.get("Content-Length")
        if size is not None:
            return self.rfile.read(int(size))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def wandb_online(monkeypatch, folder):
    """A server to which every process started from here on logs.

    :param folder: for wandb's own files.
    """
    wandb.teardown()  # wandb reads the environment once in the life of a process
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_RUN_GROUP", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(folder / name.lower()))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        wandb.teardown()
        server.shutdown()
        server.server_close()
        thread.join()
