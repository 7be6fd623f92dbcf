"""A Hub on this machine: an HTTP server with as much of the Hub's interface as huggingface_hub's client uses.

Repositories live in memory as commits (path -> content); large files go through LFS and are served, as on the Hub, by
a redirect to another host. `fail` makes chosen requests go wrong. Xet is not spoken: clients need
HF_HUB_DISABLE_XET=1, which `environment` sets for sub-processes and `connect` for this process.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER, TOKEN = "tester", "hf_loopback"
LFS_SUFFIXES = (".safetensors", ".png", ".bin")
PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


@dataclass
class Repository:
    kind: str  # "models", "datasets" or "spaces"
    id: str
    private: bool = False
    sdk: str | None = None
    variables: dict = field(default_factory=dict)  # of a Space
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{self.id}{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Path -> content at a branch or commit.

        Raises:
            KeyError: there is no such revision.
        """
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD /path" matches: an HTTP status, or the connection itself."""

    pattern: str
    times: int
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False  # closed before an answer
    half: bool = False  # closed after half of the body
    wait: float = 0.0  # seconds before anything else


class LoopbackHub:
    """The server, as a context manager.

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        repositories: (kind, id) -> Repository, kind being "models", "datasets" or "spaces".
        requests: what was asked, as "METHOD /path".
        strangers: requests that this server does not know (answered with 404).
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # sha256 -> large file
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.strangers: list[str] = []
        self.tokens_at_cdn: list[str] = []  # must stay empty: a token is for the Hub alone
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        hub = self

        class Bound(Handler):
            pass

        Bound.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.cdn = f"http://localhost:{self.port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def fail(self, pattern: str, times: int = 1, **how) -> None:
        """Make the next `times` requests that match a regular expression fail as a `Fault` describes."""
        self.faults.append(Fault(pattern, times, **how))

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def create(self, id: str, kind: str = "models", private: bool = False, sdk: str | None = None) -> Repository:
        repository = self.repositories[kind, id] = Repository(kind, id, private, sdk)
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return repository

    def model(self, id: str) -> Repository:
        return self.repositories["models", id]

    def environment(self, home) -> dict[str, str]:
        """Environment variables of a sub-process that talks to this server and keeps its files in `home`."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def connect(self, monkeypatch, home) -> None:
        """Let huggingface_hub in this process talk to this server, with its cache in `home`, and never wait long."""
        from huggingface_hub import constants
        from huggingface_hub.utils import disable_progress_bars

        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # what is less is not resumed, but done again
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        disable_progress_bars()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def log_message(self, *_):
        pass

    def _serve(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._read_chunked()
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.request_line = f"{self.command} {url.path}"
        self.fault = None
        with self.hub.lock:
            self.hub.requests.append(self.request_line)
        fault = self.hub.fault_for(self.request_line)
        if fault is not None:
            threading.Event().wait(fault.wait)  # `time.sleep` may be patched for the client
            if fault.cut:
                return self._cut()
            if fault.status is not None:
                return self._answer(fault.status, {"error": "told to fail"}, fault.headers)
            self.fault = fault
        for method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and self.command in method.split("|"):
                with self.hub.lock:
                    return action(self, *(part and unquote(part) for part in match.groups()))
        self.hub.strangers.append(self.request_line)
        return self._answer(404, {"error": "the loopback Hub does not know this request"})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read_chunked(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _cut(self):
        """Reset the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.wfile.flush()
        self.connection.close()

    def _answer(self, status: int, content=b"", headers: dict[str, str] | None = None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.half:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)  # an orderly end, so that what was sent arrives
            self.close_connection = True
            return
        self.wfile.write(content)

    # Who asks, and for what.

    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, kind: str, id: str) -> Repository | None:
        """The repository, or None after an answer that says there is none (also for a private one of others)."""
        repository = self.hub.repositories.get((kind, id))
        if repository is None or (repository.private and not self._authorized()):
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def _files(self, kind: str, id: str, revision: str):
        """Repository, commit and files, or None after an answer that says what is missing."""
        repository = self._repository(kind, id)
        if repository is None:
            return None
        try:
            files = repository.files(revision)
        except KeyError:
            self._answer(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository, repository.branches.get(revision, revision), files

    def _writable(self, kind: str, id: str) -> Repository | None:
        if not self._authorized():
            self._answer(401, {"error": "Invalid username or password."})
            return None
        return self._repository(kind, id)

    # Accounts and repositories.

    def whoami(self):
        if not self._authorized():
            return self._answer(401, {"error": "Invalid username or password."})
        return self._answer(200, {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def create_repository(self):
        if not self._authorized():
            return self._answer(401, {"error": "Invalid username or password."})
        wish = json.loads(self.body)
        kind = f"{wish.get('type') or 'model'}s"
        id = f"{wish.get('organization') or USER}/{wish['name']}"
        answer = {"url": f"{self.hub.endpoint}/{PREFIXES[kind]}{id}", "id": id}
        if (kind, id) in self.hub.repositories:
            return self._answer(409, {**answer, "error": "You already created this repo"})
        private = bool(wish.get("private")) or wish.get("visibility") == "private"
        self.hub.create(id, kind, private, wish.get("sdk"))
        return self._answer(200, answer)

    def information(self, kind, id, revision):
        found = self._files(kind, id, revision or "main")
        if found is None:
            return None
        repository, sha, files = found
        siblings = [{"rfilename": path} for path in files]
        return self._answer(
            200,
            {
                "_id": "0",
                "id": id,
                "modelId": id,
                "sha": sha,
                "private": repository.private,
                "tags": [],
                "siblings": siblings,
                "author": id.split("/")[0],
                "downloads": 0,
                "likes": 0,
                "library_name": "diffusers",
                "gated": False,
                "disabled": False,
            },
        )

    def tree(self, kind, id, revision, folder):
        found = self._files(kind, id, revision)
        if found is None:
            return None
        prefix = f"{folder}/" if folder else ""
        entries = [entry(path, data) for path, data in found[2].items() if path.startswith(prefix)]
        return self._answer(200, entries)

    def references(self, kind, id):
        repository = self._repository(kind, id)
        if repository is None:
            return None
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in repository.branches.items()
        ]
        return self._answer(200, {"branches": branches, "converts": [], "tags": [], "pullRequests": []})

    def create_branch(self, kind, id, branch):
        repository = self._writable(kind, id)
        if repository is None:
            return None
        if branch in repository.branches:
            return self._answer(409, {"error": "Reference already exists"})
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repository.branches[branch] = repository.branches.get(start, start)
        return self._answer(200, {})

    def variables(self, id):
        repository = self._writable("spaces", id)
        if repository is None:
            return None
        wish = json.loads(self.body)
        repository.variables[wish["key"]] = wish["value"]
        return self._answer(200, {key: {"key": key, "value": v} for key, v in repository.variables.items()})

    def nothing(self):
        """What newer clients ask for and do without, and repositories without an owner's name."""
        return self._answer(404, {"error": "not here"}, {"X-Error-Code": "RepoNotFound"})

    # Writing.

    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        match = re.match(r"^---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            data = yaml.safe_load(match.group(1)) if match else {}
        except yaml.YAMLError as error:
            return self._answer(400, {"errors": [{"message": str(error)}], "warnings": []})
        if not isinstance(data, dict):
            return self._answer(400, {"errors": [{"message": "the front matter is no mapping"}], "warnings": []})
        return self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, kind, id, revision):
        repository = self._writable(kind, id)
        if repository is None:
            return None
        try:
            present = repository.files(revision)
        except KeyError:
            return self._answer(404, {"error": "no such branch"}, {"X-Error-Code": "RevisionNotFound"})
        files = []
        for wish in json.loads(self.body)["files"]:
            path = wish["path"]
            file = {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False}
            if path in present:
                file["oid"] = oid(path, present[path])
            files.append(file)
        return self._answer(200, {"files": files})

    def lfs_batch(self, prefix, id):
        repository = self._writable(f"{prefix.rstrip('/')}" if prefix else "models", id)
        if repository is None:
            return None
        objects = []
        for wish in json.loads(self.body)["objects"]:
            answer = {"oid": wish["oid"], "size": wish["size"]}
            if wish["oid"] not in self.hub.objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.cdn}/lfs/{wish['oid']}"},
                    "verify": {"href": f"{self.hub.endpoint}/verify/{wish['oid']}"},
                }
            objects.append(answer)
        return self._answer(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, sha):
        if hashlib.sha256(self.body).hexdigest() != sha:
            return self._answer(400, {"error": "content and checksum differ"})
        self.hub.objects[sha] = self.body
        return self._answer(200)

    def lfs_verify(self, sha):
        wish = json.loads(self.body)
        right = wish["oid"] == sha and len(self.hub.objects.get(sha, b"")) == wish["size"]
        return self._answer(200 if right else 404, {})

    def commit(self, kind, id, revision):
        repository = self._writable(kind, id)
        if repository is None:
            return None
        try:
            files = dict(repository.files(revision))
        except KeyError:
            return self._answer(404, {"error": "no such branch"}, {"X-Error-Code": "RevisionNotFound"})
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return self._answer(400, {"error": f"unknown operation {operation['key']}"})
        branch, request = revision, None
        if self.query.get("create_pr") == ["1"]:
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            branch = f"refs/pr/{number}"
            request = f"{self.hub.endpoint}/{id}/discussions/{number}"
        sha = repository.commit(branch, files, header["value"]["summary"])
        url = f"{self.hub.endpoint}/{PREFIXES[kind]}{id}/commit/{sha}"
        return self._answer(200, {"commitUrl": url, "commitOid": sha, "pullRequestUrl": request})

    # Reading.

    def resolve(self, prefix, id, revision, path):
        found = self._files(prefix.rstrip("/") if prefix else "models", id, revision)
        if found is None:
            return None
        _, sha, files = found
        commit = {"X-Repo-Commit": sha}
        if path not in files:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **commit})
        data = files[path]
        if is_large(path):
            digest = hashlib.sha256(data).hexdigest()
            self.hub.objects[digest] = data
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            return self._answer(302, b"", {**commit, **linked, "Location": f"{self.hub.cdn}/cdn/{digest}"})
        return self._content(data, {**commit, "ETag": f'"{oid(path, data)}"'})

    def cdn(self, sha):
        if self.headers.get("Authorization"):
            self.hub.tokens_at_cdn.append(self.request_line)
        return self._content(self.hub.objects[sha], {"ETag": f'"{sha}"'})

    def _content(self, data: bytes, headers: dict[str, str]):
        """A file, or the part of it that a Range header asks for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked is None:
            return self._answer(200, data, headers)
        self.hub.ranges.append(f"{asked.group(0)} of {self.request_line}")
        start, end = int(asked.group(1)), min(int(asked.group(2) or len(data)), len(data) - 1)
        if start >= len(data):
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return self._answer(206, data[start : end + 1], headers)


def is_large(path: str) -> bool:
    """Whether a file is kept by LFS."""
    return path.endswith(LFS_SUFFIXES)


def oid(path: str, data: bytes) -> str:
    """The checksum by which the client knows whether a file has changed: sha256 with LFS, else git's."""
    if is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(path: str, data: bytes) -> dict:
    """A file in a listing."""
    result = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if is_large(path):
        result["lfs"] = {"oid": oid(path, data), "size": len(data), "pointerSize": 134}
    return result


API = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
FILES = r"/(datasets/|spaces/)?([^/]+/[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("GET", r"/api/agent-harnesses|/api/(?:models|spaces)/[^/]+", Handler.nothing),
    ("POST", r"/api/repos/create", Handler.create_repository),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", r"/api/spaces/([^/]+/[^/]+)/variables", Handler.variables),
    ("GET", API + r"/tree/([^/]+)(?:/(.+))?", Handler.tree),
    ("GET", API + r"/refs", Handler.references),
    ("POST", API + r"/branch/([^/]+)", Handler.create_branch),
    ("POST", API + r"/preupload/([^/]+)", Handler.preupload),
    ("POST", API + r"/commit/([^/]+)", Handler.commit),
    ("GET", API + r"(?:/revision/([^/]+))?", Handler.information),
    ("POST", FILES + r"\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", Handler.lfs_upload),
    ("POST", r"/verify/([0-9a-f]{64})", Handler.lfs_verify),
    ("GET|HEAD", FILES + r"/resolve/([^/]+)/(.+)", Handler.resolve),
    ("GET|HEAD", r"/cdn/([0-9a-f]{64})", Handler.cdn),
)
