"""Wheels made at home, honest and hostile, and a package index on loopback that serves them."""

from __future__ import annotations

import hashlib
import html
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.environment import Environment, Pin, Wheel, normalised

ANY = "py3-none-any"


def make_wheel(
    folder: Path,
    name: str = "toy",
    version: str = "1.0",
    files: Mapping[str, str | bytes] | None = None,
    *,
    tags: str = ANY,
    metadata: str = "",
    compression: int = zipfile.ZIP_DEFLATED,
    odd: Sequence[tuple[zipfile.ZipInfo, bytes]] = (),
) -> Path:
    """A wheel that holds a module of its name, and ``files``. ``odd``: entries as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tags}.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        for inside, content in (files or {}).items():
            archive.writestr(inside, content)
        for info, raw in odd:
            archive.writestr(info, raw)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
        archive.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nGenerator: home\nRoot-Is-Purelib: true\nTag: {tags}\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def wheel_of(path: Path) -> Wheel:
    """As the environment names the file."""
    raw = path.read_bytes()
    return Wheel(path.name, hashlib.sha256(raw).digest(), len(raw), blob_id_of(raw))


def pin_of(*paths: Path, marker: str = "") -> Pin:
    """The line of a lock for files of one version."""
    wheels = [wheel_of(path) for path in paths]
    return Pin(wheels[0].name, paths[0].name.split("-")[1], marker, frozenset(wheel.sha256.hex() for wheel in wheels))


def environment_of(*paths: Path, requires_python: str = "", pins: Sequence[Pin] | None = None) -> Environment:
    """An environment of these files, one distribution each unless ``pins`` says otherwise."""
    lines = sorted(pin.line() for pin in (pins or [pin_of(path) for path in paths]))
    return Environment("".join(f"{line}\n" for line in lines), requires_python, tuple(wheel_of(path) for path in paths))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is that of the base class
        server = self.server
        assert isinstance(server, Index)
        server.asked.append(self.path)


class Index(ThreadingHTTPServer):
    """A package index. ``asked`` holds the paths of all requests."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
        self.folder = folder
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/simple/"

    def add(self, name: str, *files: Path, wrong_hash: bool = False) -> None:
        """Serve these files as those of a project."""
        page = self.folder / "simple" / normalised(name)
        page.mkdir(parents=True, exist_ok=True)
        rows = []
        for file in files:
            (self.folder / "files").mkdir(exist_ok=True)
            (self.folder / "files" / file.name).write_bytes(file.read_bytes())
            digest = hashlib.sha256(b"other" if wrong_hash else file.read_bytes()).hexdigest()
            rows.append(f'<a href="/files/{html.escape(file.name)}#sha256={digest}">{html.escape(file.name)}</a>')
        (page / "index.html").write_text("<!DOCTYPE html><html><body>" + "\n".join(rows) + "</body></html>")


@contextmanager
def index_of(folder: Path) -> Iterator[Index]:
    """An index in a thread, gone after the block."""
    folder.mkdir(parents=True, exist_ok=True)
    index = Index(folder)
    thread = threading.Thread(target=index.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        index.shutdown()
        index.server_close()
        thread.join(5)
