"""The page in which a student completes text: what the server gives out, and the browser's text against PyTorch's."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.web import packages, server
from scripts.web.packages import VENDOR_FILES, default_packages_dir, install_packages
from scripts.web.server import describe, make_server
from storage.errors import ConfigError
from student.export.command import write_export
from student.export.config import ExportConfig
from student.generation.generator import Generator
from student.model.loading import load_student
from student.model.tokenizers import load_tokenizer
from tests.browser import visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROMPT = "the teacher — once"
DONE = "body[data-state=done]"


@pytest.fixture(scope="module")
def student_dir(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("student") / "student"
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=257, n_positions=512, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3, bos_token_id=256,
        eos_token_id=256,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(directory)
    helpers.make_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def exported(student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "student <b>"
    model = load_student(student_dir).eval()
    model.set_attn_implementation("eager")
    config = ExportConfig(student=student_dir, out=out, format="onnx", text=Path("text"))
    write_export(config, model, load_tokenizer(student_dir), out)
    return out


@pytest.fixture(scope="module")
def serve(exported: Path) -> Iterator[Callable[[Path], str]]:
    """Starts a server for some packages; its address."""
    running = []

    def start(packages_dir: Path) -> str:
        running.append(make_server(exported, packages_dir, 0))
        threading.Thread(target=running[-1].serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_address[1]}"

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


def ask(address: str, path: str, method: str = "GET") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    connection.request(method, path)
    return connection.getresponse()


@pytest.fixture(scope="module")
def address(serve: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A server whose packages are empty files."""
    directory = tmp_path_factory.mktemp("packages")
    for file in VENDOR_FILES.values():
        (directory / "node_modules" / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / "node_modules" / file).write_bytes(b"//")
    return serve(install_packages(directory))


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/worker.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/vendor/ort.mjs", "text/javascript; charset=utf-8"),
        ("/vendor/ort.wasm", "application/wasm"),
        ("/student/config.json", "application/json"),
        ("/student/onnx/model.onnx?x=1", "application/octet-stream"),
    ],
)
def test_files_come_with_their_type_and_only_from_here(address: str, path: str, content_type: str) -> None:
    response = ask(address, path)
    content = response.read()
    assert response.status == 200
    assert response.headers["Content-Type"] == content_type
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert "http" not in response.headers["Content-Security-Policy"]
    assert len(content) == int(response.headers["Content-Length"]) > 0
    head = ask(address, path, "HEAD")
    assert (head.status, head.read(), head.headers["Content-Length"]) == (200, b"", str(len(content)))


@pytest.mark.parametrize(
    "path",
    [
        "/student/../student/config.json", "/student/%2e%2e/%2e%2e/etc/passwd", "/student//etc/passwd", "/student/",
        "/student/onnx", "/vendor/package.json", "/server.py", "/student/nothing.json", "/index.html",
    ],
)  # fmt: skip
def test_nothing_else_is_given_out(address: str, path: str) -> None:
    response = ask(address, path)
    assert (response.status, response.read()) == (404, b"")


def test_the_page_learns_what_it_runs(address: str, exported: Path) -> None:
    facts = json.loads(ask(address, "/student.json").read())
    num_bytes = (exported / "onnx" / "model.onnx").stat().st_size
    assert facts == {
        "name": "student <b>", "dtype": "fp32", "bytes": num_bytes, "context_length": 512, "beginning_ids": [],
        "end_ids": [256],
    }  # fmt: skip


def test_another_directory_and_a_taken_port_are_one_line(exported: Path, student_dir: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=r"holds no onnx/model\.onnx"):
        describe(student_dir)
    port = int(address.rpartition(":")[2])
    for taken_or_none in (port, -1, 99999):
        with pytest.raises(ConfigError, match=f"--port {taken_or_none}: "):
            make_server(exported, student_dir, taken_or_none)


def test_packages_need_npm_and_a_free_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="npm is not on the path"):
        install_packages(tmp_path / "packages")
    with pytest.raises(ConfigError, match="name another --packages"):
        install_packages(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failing_npm_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no such package >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(packages.shutil, "which", lambda name: str(npm))
    with pytest.raises(ConfigError, match="npm ci failed: no such package"):
        install_packages(tmp_path / "packages")
    assert list(tmp_path.iterdir()) == [npm]


def test_every_file_of_the_page_is_served() -> None:
    here = Path(server.__file__).parent
    assert set(server._PAGE_FILES.values()) == {p.name for p in here.iterdir() if p.suffix in (".html", ".css", ".js")}


def test_versions_are_pinned_without_an_address() -> None:
    here = Path(packages.__file__).parent
    assert json.loads((here / "package.json").read_text())["dependencies"] == {"@huggingface/transformers": "4.3.1"}
    lock = json.loads((here / "package-lock.json").read_text())
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]


@pytest.fixture(scope="module")
def page_address(serve: Callable[[Path], str]) -> str:
    """A server with the real library; skipped where npm cannot get it."""
    try:
        return serve(install_packages(default_packages_dir()))
    except ConfigError as error:
        pytest.skip(str(error))


def complete(page: Page, prompt: str, *, temperature: float, length: int) -> None:
    """Press the button when the student is ready."""
    page.wait_for_selector("body[data-state=ready], body[data-state=failed]", timeout=60_000)
    page.fill("#prompt", prompt)
    for name, value in (("temperature", temperature), ("length", length)):
        page.evaluate("([name, value]) => { document.getElementById(name).value = value }", [name, value])
    page.click("#go")


def test_the_browser_writes_what_pytorch_writes_and_asks_nobody_else(
    browser: Browser, page_address: str, student_dir: Path
) -> None:
    expected = Generator(student_dir, device="cpu").generate(PROMPT, max_new_tokens=40, temperature=0)
    with visiting(browser, width=390, height=844, dark=True) as visit:
        visit.open(page_address)
        complete(visit.page, PROMPT, temperature=0, length=40)
        visit.page.wait_for_selector(DONE, timeout=60_000)
        assert visit.page.text_content("#completion") == expected
        assert len(expected) > 20
        assert visit.page.text_content("#given") == PROMPT
        assert (visit.page.text_content("#about") or "").startswith("student <b>: ")
        assert not visit.errors
        assert {urlsplit(request).netloc for request in visit.requests} == {urlsplit(page_address).netloc}
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# The page itself clicks: a click from here may come when all 256 tokens are drawn.
STOP_AT_THE_FIRST_TEXT = """() => {
    const shown = document.getElementById("completion");
    const watch = new MutationObserver(() => {
        if (shown.textContent) { watch.disconnect(); document.getElementById("go").click(); }
    });
    watch.observe(shown, {childList: true, characterData: true, subtree: true});
}"""


def test_text_can_be_stopped_and_drawn_anew(browser: Browser, page_address: str) -> None:
    with visiting(browser) as visit:
        visit.open(page_address)
        visit.page.evaluate(STOP_AT_THE_FIRST_TEXT)
        complete(visit.page, PROMPT, temperature=0, length=256)
        visit.page.wait_for_selector(DONE)
        first: Any = visit.page.text_content("#completion")
        assert "was stopped" in (visit.page.text_content("#rate") or "")
        assert visit.page.text_content("#go") == "Continue"
        visit.page.evaluate("document.getElementById('temperature').value = 1.5")
        visit.page.evaluate(STOP_AT_THE_FIRST_TEXT)
        visit.page.click("#go")
        visit.page.wait_for_function("first => document.getElementById('completion').textContent !== first", arg=first)
        visit.page.wait_for_selector(DONE)
        assert visit.page.text_content("#completion") != first
        assert not visit.errors


def test_a_prompt_that_does_not_fit_is_told(browser: Browser, page_address: str) -> None:
    with visiting(browser) as visit:
        visit.open(page_address)
        complete(visit.page, "x" * 600, temperature=0, length=8)
        visit.page.wait_for_selector("body[data-state=failed]")
        assert visit.page.text_content("#about") == "the text has 600 tokens, this student reads 512"
