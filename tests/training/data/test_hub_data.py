"""A data set on a local Hub server, read in streaming."""

import json
import re
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hub_server import Hub, environment_of
from small_data import drawing
from test_sources import image_table


class DataHub(Hub):
    """The calls that `datasets` makes for a data set, beside those for models."""

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.calls.append(path)
        name, _, rest = path.removeprefix("/api").removeprefix("/datasets/").partition("/")
        owner, (name, _, rest) = name, rest.partition("/")
        files = self.server.repositories.get(f"{owner}/{name}")
        if "/datasets/" not in path or files is None:
            self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        elif rest.startswith("resolve/"):
            file = rest.split("/", 2)[2]
            if file in files:
                self.answer_part(files[file])
            else:
                self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
        elif rest.startswith("tree/"):
            _, _, folder = rest.removeprefix("tree/").partition("/")
            prefix = f"{folder}/" if folder else ""
            inside = [file for file in files if file.startswith(prefix)]
            direct = [file for file in inside if "/" not in file.removeprefix(prefix)]
            folders = {prefix + file.removeprefix(prefix).split("/")[0] for file in set(inside) - set(direct)}
            self.answer(
                [{"type": "file", "path": file, "size": len(files[file]), "oid": "0"} for file in direct]
                + [{"type": "directory", "path": folder, "size": 0, "oid": "0"} for folder in folders]
            )
        elif not rest or rest.startswith("revision/"):
            self.answer(
                {"id": f"{owner}/{name}", "sha": "0" * 40, "siblings": [{"rfilename": file} for file in files]}
            )
        else:
            self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def answer_part(self, content: bytes):
        """A file, or the range of it that the request names."""
        if "Range" not in self.headers:
            return self.answer_file(content, "0" * 40)
        start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"]).groups()
        part = content[int(start) : int(end) + 1 if end else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.body()
        owner, name, call = path.removeprefix("/api/datasets/").split("/", 2)
        files = self.server.repositories[f"{owner}/{name}"]
        asked = json.loads(body)["paths"] if call.startswith("paths-info") else []
        self.answer(
            [{"type": "file", "path": file, "size": len(files[file]), "oid": "0"} for file in asked if file in files]
        )


@pytest.fixture
def data_hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), DataHub)
    server.repositories, server.objects, server.calls = {}, {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


READ = """
    import itertools, json
    from showo_hf.training.data.loader import StepLoader, TaskData
    from showo_hf.training.data.examples import BrokenExample
    from showo_hf.training.data.sources import DataSource, open_source

    def texts(examples):
        return [(one.text, one.image.size) for one in examples["t2i"]]

    data = {"t2i": TaskData((DataSource("owner/drawings"),), 2)}
    first = list(itertools.islice(StepLoader(data, texts, seed=0), 6))
    state = json.loads(json.dumps(first[1][1]))
    resumed = list(itertools.islice(StepLoader(data, texts, seed=0, state=state, num_workers=1), 4))
    assert [batch for batch, _ in resumed] == [batch for batch, _ in first[2:]]
    print(json.dumps([text for batch, _ in first for text, _ in batch]))
    try:
        StepLoader({"t2i": TaskData((DataSource("owner/missing"),), 2)}, texts, seed=0)
    except ValueError as error:
        print(error)
    tagged = open_source(DataSource("owner/drawings", revision="v1"), "t2i")
    print(len(list(tagged.stream)))
    paths = open_source(DataSource("owner/paths"), "t2i")
    try:
        paths.example(next(iter(paths.stream)), "key", 0)
    except BrokenExample as error:
        print(error)
"""


@pytest.mark.slow
def test_a_data_set_on_the_hub_is_streamed_and_resumed(data_hub, tmp_path):
    files = {}
    for part, numbers in enumerate(((0, 1), (2, 3, 4))):
        file = image_table(tmp_path / f"train-{part}.parquet", numbers)
        files[f"data/{file.name}"] = file.read_bytes()
    data_hub.repositories["owner/drawings"] = files
    drawing(0).save(tmp_path / "secret.png")
    row = {"image": str(tmp_path / "secret.png"), "text": "x"}
    data_hub.repositories["owner/paths"] = {"rows.jsonl": json.dumps(row).encode()}
    source = Path(__file__).parents[3] / "src"
    environment = environment_of(data_hub, tmp_path / "home") | {"PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READ)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    texts, refusal, count, escape = done.stdout.splitlines()[-4:]
    times = Counter(json.loads(texts))  # six rows of each of two streams: one has two samples, and one three
    assert times == {f"drawing {number}": 3 if number < 2 else 2 for number in range(5)}
    assert "'owner/missing' cannot be opened" in refusal
    assert count == "5"
    assert any("revision/v1" in call or "/v1/" in call for call in data_hub.calls)
    assert escape.startswith("the image must lie in the folder of the data")
