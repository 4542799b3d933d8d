"""A small Hub on 127.0.0.1: enough of the Hub's HTTP interface for push, download and `load_dataset` in the tests.

A repository is a folder of its newest files, `folder/<models|datasets>/<owner>/<name>`, and its last commit hash in
`<name>.commit` beside it. Older revisions are not kept: `main` and the newest hash are the only revisions.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


USER = "tester"
REPO = r"(?P<kind>models|datasets)/(?P<repo_id>[^/]+/[^/]+)"


class HubError(Exception):
    """An answer other than 200; `code` is what huggingface_hub reads from `X-Error-Code`."""

    def __init__(self, status: int, code: str | None = None):
        super().__init__(code or str(status))
        self.status, self.code = status, code


class Repository:
    """The files and the newest commit of one repository."""

    def __init__(self, folder: Path, kind: str, repo_id: str):
        self.kind, self.repo_id = kind, repo_id
        self.files, self.lfs_folder = folder / kind / repo_id, folder / "lfs"
        self.commit_file = self.files.with_name(f"{self.files.name}.commit")

    def create(self) -> bool:
        if self.commit_file.exists():
            return False
        self.files.mkdir(parents=True)
        self.commit_file.write_text(hashlib.sha1(self.repo_id.encode()).hexdigest())
        return True

    def sha(self, revision: str = "main") -> str:
        if not self.commit_file.exists():
            raise HubError(404, "RepoNotFound")
        sha = self.commit_file.read_text()
        if revision not in ("main", sha):
            raise HubError(404, "RevisionNotFound")
        return sha

    def path(self, name: str) -> Path:
        path = (self.files / name).resolve()
        if not path.is_relative_to(self.files.resolve()):
            raise HubError(400)
        return path

    def file(self, name: str) -> Path:
        path = self.path(name)
        if not path.is_file():
            raise HubError(404, "EntryNotFound")
        return path

    def tree(self, folder: str, recursive: bool) -> list[dict]:
        root = self.path(folder)
        if not root.is_dir():
            raise HubError(404, "EntryNotFound")
        return [self.entry(path) for path in sorted(root.rglob("*") if recursive else root.iterdir())]

    def entry(self, path: Path) -> dict:
        name = path.relative_to(self.files.resolve()).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
        return {"type": "file", "path": name, "oid": blob_id(path.read_bytes()), "size": path.stat().st_size}

    def info(self, revision: str = "main") -> dict:
        names = [entry["path"] for entry in self.tree("", recursive=True) if entry["type"] == "file"]
        siblings = [{"rfilename": name} for name in names]
        repo = {"id": self.repo_id, "sha": self.sha(revision), "private": False, "gated": False, "disabled": False}
        return repo | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0} | self.card_fields()

    def card_fields(self) -> dict:
        """What the real Hub reads from the README and repeats in the repository's information."""
        readme = self.files / "README.md"
        fields = (
            re.findall(r"^(pipeline_tag|library_name): (.+)$", readme.read_text(), re.M) if readme.exists() else []
        )
        return dict(fields)

    def commit(self, body: bytes) -> str:
        parent = self.sha()
        for line in filter(None, body.splitlines()):
            self.apply(**json.loads(line))
        sha = hashlib.sha1(parent.encode() + body).hexdigest()
        self.commit_file.write_text(sha)
        return sha

    def write(self, name: str, content: bytes) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def apply(self, key: str, value: dict) -> None:
        if key == "file":
            self.write(value["path"], base64.b64decode(value["content"]))
        elif key == "lfsFile":
            self.write(value["path"], (self.lfs_folder / value["oid"]).read_bytes())
        elif key == "deletedFile":
            self.file(value["path"]).unlink()
        elif key != "header":
            raise HubError(400)


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubHandler(BaseHTTPRequestHandler):
    """Routes a request to the method of the first pattern that matches its path."""

    protocol_version = "HTTP/1.1"
    routes = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/.+/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "lfs_upload"),
        ("POST", rf"/api/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/api/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", rf"/api/{REPO}/tree/(?P<revision>[^/]+)/?(?P<name>.*)", "tree"),
        ("GET", rf"/api/{REPO}(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", r"/(?P<kind>datasets/)?(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "resolve"),
    )

    def do_GET(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        try:
            self.route(url.path)
        except HubError as error:
            self.answer(b"{}", error.status, {"X-Error-Code": error.code} if error.code else {})

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self, path: str) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, name in self.routes:
            match = re.fullmatch(pattern, path)
            if match and verb == method:
                return getattr(self, name)(**{key: unquote(value or "") for key, value in match.groupdict().items()})
        raise HubError(404, "RepoNotFound" if re.match(r"/api/(models|datasets)/|.*/resolve/", path) else None)

    def repository(self, kind: str, repo_id: str) -> Repository:
        return Repository(self.server.folder, kind, repo_id)

    def page(self, kind: str, repo_id: str) -> str:
        return f"{self.server.endpoint}/{'' if kind == 'models' else 'datasets/'}{repo_id}"

    def whoami(self):
        self.answer_json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def validate_yaml(self):
        self.answer_json({"errors": [], "warnings": []})

    def create(self):
        request = json.loads(self.body)
        repo_id = f"{request.get('organization') or USER}/{request['name']}"
        kind = f"{request.get('type') or 'model'}s"
        is_new = self.repository(kind, repo_id).create()
        # The real Hub names the repository in its 409 too, and `create_repo(exist_ok=True)` reads it there.
        self.answer_json({"url": self.page(kind, repo_id), "name": repo_id, "id": repo_id}, 200 if is_new else 409)

    def preupload(self, kind: str, repo_id: str, revision: str):
        self.repository(kind, repo_id).sha(revision)
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        # `Dataset.push_to_hub` deletes a Parquet file once it is pre-uploaded, which only LFS files are.
        modes = {path: "lfs" if path.endswith(".parquet") else "regular" for path in paths}
        answers = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self.answer_json({"files": answers})

    def lfs_batch(self):
        objects = json.loads(self.body)["objects"]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{item['oid']}"}}
        self.answer_json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str):
        path = self.server.folder / "lfs" / oid
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.body)
        self.answer_json({})

    def commit(self, kind: str, repo_id: str, revision: str):
        repository = self.repository(kind, repo_id)
        repository.sha(revision)
        with self.server.lock:
            sha = repository.commit(self.body)
        self.answer_json({"commitOid": sha, "commitUrl": f"{self.page(kind, repo_id)}/commit/{sha}"})

    def paths_info(self, kind: str, repo_id: str, revision: str):
        repository = self.repository(kind, repo_id)
        repository.sha(revision)
        paths = [repository.path(name) for name in self.requested_paths()]
        self.answer_json([repository.entry(path) for path in paths if path.exists()])

    def requested_paths(self) -> list[str]:
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(self.body)["paths"]
        return parse_qs(self.body.decode())["paths"]

    def tree(self, kind: str, repo_id: str, revision: str, name: str):
        repository = self.repository(kind, repo_id)
        repository.sha(revision)
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        self.answer_json(repository.tree(name, recursive))

    def info(self, kind: str, repo_id: str, revision: str):
        repository = self.repository(kind, repo_id)
        repository.sha(revision or "main")
        self.answer_json(repository.info(revision or "main"))

    def resolve(self, kind: str, repo_id: str, revision: str, name: str):
        repository = self.repository(kind.strip("/") or "models", repo_id)
        commit = {"X-Repo-Commit": repository.sha(revision)}
        try:
            content = repository.file(name).read_bytes()
        except HubError as error:
            return self.answer(b"", error.status, commit | {"X-Error-Code": error.code})
        headers = commit | {"ETag": f'"{blob_id(content)}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.answer(content, 200, headers)
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1) + 1
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self.answer(content[start:stop], 206, headers)

    def answer_json(self, value: dict | list, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def answer(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def running_hub(folder: str | Path) -> Iterator[str]:
    """Serve the repositories under `folder` on a free port of 127.0.0.1 and yield the endpoint's URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.daemon_threads = True
    server.folder, server.lock = Path(folder), threading.Lock()
    server.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hub_environment(endpoint: str, home: str | Path, base: dict[str, str] | None = None) -> dict[str, str]:
    """
    The environment of a subprocess that should talk to the small Hub and nothing else.

    Args:
        endpoint (`str`): what [`running_hub`] yields.
        home (`str` or `Path`): an empty folder for the caches.
        base (`dict`, *optional*): the environment to start from, `os.environ` by default.

    Returns:
        `dict`: `base` without any Hugging Face variable and without proxies, and the variables of the small Hub.
    """
    ours = ("HF_", "HUGGING", "TRANSFORMERS_")
    kept = {key: value for key, value in (base or os.environ).items() if not key.startswith(ours)}
    kept = {key: value for key, value in kept.items() if not key.lower().endswith("_proxy")}
    return kept | {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": "x",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
