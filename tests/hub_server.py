"""A small local server with the Hub's API, as far as uploads and downloads of huggingface_hub use it."""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Fault:
    """
    A fault of the server, at the next `times` requests that match.

    Args:
        request: regular expression that is searched in "METHOD /path".
        kind: a status code to answer with; "cut": the connection ends in the middle of the request's body, and nothing
            is done; "lost": the work is done, and the connection ends before the answer; "hang": no answer comes
            before the server ends; a function: it is called, and then the request is answered as usual.
        times: how many requests.
    """

    request: str
    kind: int | str | Callable[[], None]
    times: int = 1


class Hub(BaseHTTPRequestHandler):
    """
    Weights are uploaded with LFS, other files inside the commit.

    Attributes of the server:
        repositories: each repository's name to its files on the main branch, and each file's path to its bytes.
        branches: (repository, branch) to the files of another branch.
        created: each repository's name to the fields with which it was asked for last.
        commits: each repository's name to its commits; a commit is its message, its branch, and the files after it.
        tokens: each token to the answer of `whoami`.
        faults: see [`Fault`].
        requests: "METHOD /path" of all requests so far.
    """

    lost = False  # whether the connection ends in place of the next answer

    def answer(self, body, status=200, **headers):
        if self.lost:
            return self.cut()
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def cut(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def fails(self) -> bool:
        """Whether a fault has ended this request."""
        request = f"{self.command} {urlsplit(self.path).path}"
        with self.server.lock:
            self.server.requests.append(request)
            found = (fault for fault in self.server.faults if fault.times > 0 and re.search(fault.request, request))
            if (fault := next(found, None)) is None:
                return False
            fault.times -= 1
        if fault.kind == "lost" or callable(fault.kind):
            self.lost = fault.kind == "lost"
            if callable(fault.kind):
                fault.kind()
            return False
        if fault.kind == "cut":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.cut()
        elif fault.kind == "hang":
            self.server.ended.wait()
        else:
            self.body()
            self.send_response(fault.kind)  # an error page of a proxy, not JSON
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"error")
        return True

    def user(self) -> dict | None:
        return self.server.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def may_write(self, name: str) -> bool:
        """Whether the request's token may write to a repository. If not, this answers the request."""
        user = self.user()
        if user is None:
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
            return False
        namespaces = [user["name"], *(group["name"] for group in user["orgs"])]
        if user["auth"]["accessToken"]["role"] == "read" or name.split("/")[0] not in namespaces:
            self.answer({"error": "You don't have the rights to write here"}, 403)
            return False
        return True

    def head(self, name: str, branch: str = "main") -> str:
        """The newest commit of a branch."""
        commits = self.server.commits.get(name, [])
        numbers = [number for number, commit in enumerate(commits, 1) if commit[1] == branch]
        return f"{max(numbers, default=0):040x}"

    def files_at(self, name: str, revision: str) -> dict[str, bytes]:
        if (name, revision) in self.server.branches:
            return self.server.branches[name, revision]
        if re.fullmatch("[0-9a-f]{40}", revision) and 0 < int(revision, 16):
            return self.server.commits[name][int(revision, 16) - 1][2]
        return self.server.repositories[name]

    def do_GET(self):
        if self.fails():
            return
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            user = self.user()
            return self.answer(user) if user else self.answer({"error": "Invalid username or password."}, 401)
        if check := re.fullmatch("/api/models/(.+)/auth-check/write", path):
            if check[1] not in self.server.repositories:
                self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
            elif self.may_write(check[1]):
                self.answer({})
            return
        match = re.fullmatch(
            r"/(?:api/models/|api/spaces/|spaces/)?([^/]+/[^/]+)(?:/(tree|revision|resolve)/([^/]+)/?(.*))?", path
        )
        if not match or match[1] not in self.server.repositories:
            return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        revision = match[3] or "main"
        known = revision == "main" or (match[1], revision) in self.server.branches
        if not known and not re.fullmatch("[0-9a-f]{40}", revision):
            return self.answer({"error": "no such revision"}, 404, X_Error_Code="RevisionNotFound")
        commit = self.head(match[1], revision) if known else revision
        files = self.files_at(match[1], revision)
        if match[2] == "resolve" and match[4] in files:
            self.answer_file(files[match[4]], commit)
        elif match[2] == "resolve":
            self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
        elif match[2] == "tree":
            inside = [name for name in files if not match[4] or name.startswith(f"{match[4]}/")]
            if inside or not match[4]:
                self.answer([{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in inside])
            else:
                self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
        else:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            self.answer({"id": match[1], "sha": commit, "siblings": siblings})

    do_HEAD = do_GET

    def answer_file(self, content: bytes, commit: str):
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_PUT(self):
        if self.fails():
            return
        content, name = self.body(), urlsplit(self.path).path.rsplit("/", 1)[1]
        assert hashlib.sha256(content).hexdigest() == name
        self.server.objects[name] = content
        self.answer({})

    def do_POST(self):
        if self.fails():
            return
        path, body = unquote(urlsplit(self.path).path), self.body()
        url = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            fields = json.loads(body)
            user = self.user()
            name = f"{fields['organization'] or (user and user['name'])}/{fields['name']}"
            if not self.may_write(name):
                return
            existed = name in self.server.repositories
            self.server.repositories.setdefault(name, {})
            self.server.created[name] = fields
            self.answer({"url": f"{url}/{name}", "name": name}, 409 if existed else 200)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif match := re.fullmatch("/api/(?:models|spaces)/([^/]+/[^/]+)/(preupload|branch|commit)/(.+)", path):
            if match[1] not in self.server.repositories:
                self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
            elif self.may_write(match[1]):
                getattr(self, f"post_{match[2]}")(match[1], match[3], body)
        elif path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            for one in objects:
                if one["oid"] not in self.server.objects:
                    one["actions"] = {"upload": {"href": f"{url}/objects/{one['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        else:
            self.answer({"error": f"no such call: {path}"}, 404)

    def post_preupload(self, name: str, revision: str, body: bytes):
        files = self.files_at(name, revision)
        answers = []
        for path in (file["path"] for file in json.loads(body)["files"]):
            is_weight = path.endswith(".safetensors")
            one = {"path": path, "uploadMode": "lfs" if is_weight else "regular", "shouldIgnore": False}
            if path in files:
                blob = b"blob %d\0" % len(files[path]) + files[path]
                one["oid"] = hashlib.sha256(files[path]).hexdigest() if is_weight else hashlib.sha1(blob).hexdigest()
            answers.append(one)
        self.answer({"files": answers})

    def post_branch(self, name: str, branch: str, body: bytes):
        if (name, branch) in self.server.branches or branch == "main":
            return self.answer({"error": "Reference already exists"}, 409)
        self.server.branches[name, branch] = dict(self.server.repositories[name])
        self.answer({})

    def post_commit(self, name: str, branch: str, body: bytes):
        lines = [(line["key"], line["value"]) for line in map(json.loads, body.splitlines())]
        with self.server.lock:
            head = self.head(name, branch)
            if lines[0][1].get("parentCommit", head) != head:
                return self.answer({"error": "A commit has happened since. Please refresh and try again."}, 412)
            files = dict(self.files_at(name, branch))
            for key, value in lines:
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                elif key == "deletedFile":
                    del files[value["path"]]
            self.server.commits.setdefault(name, []).append((lines[0][1]["summary"], branch, files))
            if branch == "main":
                self.server.repositories[name] = files
            else:
                self.server.branches[name, branch] = files
            oid = self.head(name, branch)
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"http://{self.headers['Host']}/{name}/commit/0"})

    def log_message(self, *args):
        pass


def user_of(role: str, name: str = "someone", organizations: tuple[str, ...] = ("lab",), **token) -> dict:
    """The answer of `whoami` for a token. `role`: "write", "read" or "fineGrained"."""
    groups = [{"type": "org", "name": group, "roleInOrg": "write"} for group in organizations]
    token = {"displayName": "test", "role": role, **token}
    return {"type": "user", "name": name, "orgs": groups, "auth": {"type": "access_token", "accessToken": token}}


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.objects, server.branches, server.commits = {}, {}, {}, {}
    server.created = {}
    server.tokens = {"hf_test": user_of("write"), "hf_read": user_of("read")}
    server.faults, server.requests = [], []
    server.lock, server.ended = threading.RLock(), threading.Event()
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub_here(hub, tmp_path, monkeypatch):
    """`hub` for the process of the test itself, where huggingface_hub is imported already."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import close_session

    endpoint = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)  # whose methods are the functions of huggingface_hub
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield hub
    close_session()


def environment_of(hub: ThreadingHTTPServer, home: Path) -> dict[str, str]:
    """Environment of a process that uses `hub`. huggingface_hub reads the address when it is imported."""
    return os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
