"""A small local server with the Hub's API, as far as uploads and downloads of huggingface_hub use it."""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """
    Weights are uploaded with LFS, other files inside the commit.

    `server.repositories` maps each repository's name to its files, and each file's path to its bytes.
    """

    def answer(self, body, status=200, **headers):
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

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)(?:/(tree|revision|resolve)/([^/]+)/?(.*))?", path)
        files = self.server.repositories.get(match[1]) if match else None
        if files is None:
            self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        elif match[2] == "resolve" and match[4] in files:
            self.answer_file(files[match[4]])
        elif match[2] == "resolve":
            self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
        elif match[2] == "tree":
            inside = [name for name in files if not match[4] or name.startswith(f"{match[4]}/")]
            if inside or not match[4]:
                self.answer([{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in inside])
            else:
                self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
        else:
            siblings = [{"rfilename": name} for name in files]
            self.answer({"id": match[1], "sha": COMMIT, "siblings": siblings})

    do_HEAD = do_GET

    def answer_file(self, content: bytes):
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_PUT(self):
        self.server.objects[urlsplit(self.path).path.rsplit("/", 1)[1]] = self.body()
        self.answer({})

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.body()
        assert self.headers["Authorization"] == "Bearer hf_test"
        url = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            fields = json.loads(body)
            name = f"{fields['organization']}/{fields['name']}"
            self.server.repositories[name] = {}
            self.answer({"url": f"{url}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {True: "lfs", False: "regular"}
            self.answer(
                {
                    "files": [
                        {"path": file, "uploadMode": modes[file.endswith(".safetensors")], "shouldIgnore": False}
                        for file in files
                    ]
                }
            )
        elif path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{url}/objects/{one['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            _, _, _, owner, name, *_ = path.split("/")
            files = self.server.repositories[f"{owner}/{name}"]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{url}/{owner}/{name}/commit/0"})
        else:
            self.answer({"error": f"no such call: {path}"}, 404)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.objects = {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


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
