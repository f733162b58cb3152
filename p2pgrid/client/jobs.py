"""From a script or a command line to a job: items encoded, batches cut, large inputs set aside as blobs.

The user's ``inputs`` runs here, in the submitter's own process; ``work``, ``reduce`` and ``finish`` never do (but
``finish`` with ``finish = "local"``).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pgrid.errors import BadDataError, UsageError
from p2pgrid.model.blob import BlobHasher, blob_id_of
from p2pgrid.model.ids import BlobId
from p2pgrid.model.job import BatchRef, Derive, Job, UnitLimits
from p2pgrid.model.limits import DEFAULT_LIMITS, KIB, MIB
from p2pgrid.model.script import JobScript
from p2pgrid.model.values import FileRef, ValueEncoder
from p2pgrid.net.api import WallClock
from p2pgrid.runtimes.command import encode_command
from p2pgrid.services.inputs import FILE, VALUE, blob_value, encode_batch

CODE_INLINE_BYTES = 16 * KIB
FILE_INLINE_BYTES = 64 * KIB
DAY_MS = 24 * 3600 * 1000
BATCHES_AIMED = 32
"""A job is cut into about as many batches, so that each worker fetches little more than what it works on."""


@dataclass(frozen=True)
class JobOptions:
    """What flags and the script's header say. Times in seconds, sizes in bytes."""

    quorum: int = 1
    replicas: int = 3
    timeout_s: float = 3600.0
    memory_bytes: int = 0
    attempts: int = 3
    kept_days: float = 7.0


@dataclass
class Plan:
    """A job ready to be signed, with what must be in the grid before it is."""

    job: Job
    batches: list[bytes]
    files: dict[BlobId, Path] = field(default_factory=dict)
    """Input files too large to travel in a batch."""
    values: dict[BlobId, bytes] = field(default_factory=dict)
    """Code and items too large to travel in a batch."""


@dataclass
class _Unit:
    raw: bytes
    files: list[tuple[BlobId, int]] = field(default_factory=list)
    small: list[tuple[BlobId, bytes]] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return len(self.raw) + 80 * len(self.files) + sum(len(content) + 40 for _, content in self.small)


class JobBuilder:
    """Builds one job. ``report`` is called with the number of items read so far."""

    def __init__(
        self,
        options: JobOptions,
        wall_ms: WallClock,
        random_bytes: Callable[[int], bytes],
        report: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._options = options
        self._wall_ms = wall_ms
        self._random_bytes = random_bytes
        self._report = report
        self._files: dict[BlobId, Path] = {}
        self._values: dict[BlobId, bytes] = {}
        self._known: dict[Path, tuple[FileRef, bytes | None]] = {}
        self._unit = _Unit(b"")
        self._encoder = ValueEncoder(self._on_path)

    def script(self, script: JobScript, items: Iterable[Any]) -> Plan:
        """A job that runs a script's ``work`` on items. Raises BadDataError for an item that cannot be sent."""
        source = script.source.encode()
        inline = source if len(source) <= CODE_INLINE_BYTES else b""
        blob = b""
        if not inline:
            blob = blob_id_of(source)
            self._values[BlobId(blob)] = source
        derive = Derive(reduce=script.has_reduce, finish=script.has_finish and script.options.finish == "grid")
        return self._plan(script.file_name, "native", inline, blob, self._encoded(items), derive)

    def command(self, argv: Sequence[str], items: Iterable[str]) -> Plan:
        """A job that runs a command per item. ``{}`` is the item; without any, the item is the last argument."""
        if not argv:
            raise UsageError("no command to run", hint="p2pgrid run -- COMMAND {} ::: ITEM...")
        return self._plan(" ".join(argv)[:80], "command", b"", b"", self._commands(argv, items), Derive())

    def module(self, path: Path, arguments: Sequence[str], items: Iterable[str]) -> Plan:
        """A job that runs a WebAssembly module per item, which is its last argument (or replaces ``{}``)."""
        try:
            reference, content = self._read(path)
        except OSError as error:
            raise BadDataError(f"cannot read the module '{path}': {error.strerror}") from error
        if content is not None:
            self._values[BlobId(reference.blob)] = content
        return self._plan(path.name, "wasm", b"", reference.blob, self._commands([path.name, *arguments], items), Derive())

    # -- units ---------------------------------------------------------------------------

    def _encoded(self, items: Iterable[Any]) -> Iterator[_Unit]:
        for number, item in enumerate(items):
            self._unit = _Unit(b"")
            try:
                raw = self._encoder.encode(item)
            except BadDataError as error:
                raise BadDataError(f"item {number}: {error.message}", hint=error.hint) from error
            yield self._finished(raw)

    def _commands(self, argv: Sequence[str], items: Iterable[str]) -> Iterator[_Unit]:
        for item in items:
            self._unit = _Unit(b"")
            files = []
            path = Path(item)
            if is_file(item):
                place = _place(path)
                files.append((self._on_path(path), place))
                item = place
            named = any("{}" in argument for argument in argv)
            full = [argument.replace("{}", item) for argument in argv] if named else [*argv, item]
            yield self._finished(encode_command(full, files=files))

    def _finished(self, raw: bytes) -> _Unit:
        unit = self._unit
        unit.raw = raw
        if len(raw) > DEFAULT_LIMITS.input_inline_bytes:
            blob = blob_id_of(raw)
            self._values[blob] = raw
            unit.raw = blob_value(blob)
        return unit

    def _on_path(self, path: Path) -> FileRef:
        """Take a file along: inside the batch if it is small, else as a blob."""
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = self._read(path)
        reference, content = known
        if content is not None:
            self._unit.small.append((reference.blob, content))
        else:
            self._unit.files.append((reference.blob, reference.size_bytes))
        return reference

    def _read(self, path: Path) -> tuple[FileRef, bytes | None]:
        try:
            if path.is_dir():
                raise BadDataError(f"'{path}' is a folder", hint="yield the files in it, one by one or as a list")
            hasher, size_bytes, content = BlobHasher(), 0, b""
            with path.open("rb") as file:
                while piece := file.read(MIB):
                    content = piece if not size_bytes else b""
                    hasher.update(piece)
                    size_bytes += len(piece)
        except OSError as error:
            raise BadDataError(f"'{path}' cannot be read: {error.strerror}", hint="is it there, and may you read it?") from error
        blob, _ = hasher.finish()
        if size_bytes <= FILE_INLINE_BYTES:
            return FileRef(blob, size_bytes, path.name), content
        self._files[blob] = path
        return FileRef(blob, size_bytes, path.name), None

    # -- batches -----------------------------------------------------------------------------

    def _plan(self, name: str, runtime: str, code: bytes, code_blob: bytes, units: Iterable[_Unit], derive: Derive) -> Plan:
        read: list[_Unit] = []
        for unit in units:
            read.append(unit)
            if len(read) % 1000 == 0:
                self._report(len(read))
        self._report(len(read))
        if not read:
            raise BadDataError("there is nothing to do: no items", hint="give items after --over, or let inputs() yield some")
        batches, references = _cut(read)
        now_ms = self._wall_ms()
        options = self._options
        job = Job(
            expires_ms=now_ms + int(options.kept_days * DAY_MS),
            nonce=self._random_bytes(16),
            created_ms=now_ms,
            name=name,
            runtime=runtime,
            code=code,
            code_blob=code_blob,
            manifest=tuple(references),
            derive=derive,
            limits=UnitLimits(timeout_s=options.timeout_s, memory_bytes=options.memory_bytes),
            quorum=options.quorum,
            attempts=options.attempts,
            replicas=options.replicas,
        )
        return Plan(job, batches, self._files, self._values)


def _cut(units: list[_Unit]) -> tuple[list[bytes], list[BatchRef]]:
    """Batches of at most a megabyte and 1,024 units, about 32 of them if there are few units."""
    aim = min(DEFAULT_LIMITS.batch_units, max(1, -(-len(units) // BATCHES_AIMED)))
    limit = DEFAULT_LIMITS.batch_bytes - 64 * KIB
    contents: list[bytes] = []
    references: list[BatchRef] = []
    current: list[_Unit] = []
    size_bytes = 0

    def close() -> None:
        content = _encode(current)
        contents.append(content)
        references.append(BatchRef(blob_id_of(content), len(current), len(content)))
        current.clear()

    for unit in units:
        if current and (len(current) >= aim or size_bytes + unit.size_bytes > limit):
            close()
            size_bytes = 0
        current.append(unit)
        size_bytes += unit.size_bytes
    close()
    return contents, references


def _encode(units: list[_Unit]) -> bytes:
    rows: list[tuple[int, str, bytes, int]] = []
    small: dict[bytes, bytes] = {}
    for index, unit in enumerate(units):
        rows += [(index, FILE, blob, size_bytes) for blob, size_bytes in unit.files]
        rows += [(index, FILE, blob, len(content)) for blob, content in unit.small]
        if unit.raw[:1] == b"\xc7" and blob_value(unit.raw[3:]) == unit.raw:
            rows.append((index, VALUE, unit.raw[3:], 0))
        small.update(unit.small)
    return encode_batch([unit.raw for unit in units], rows, tuple(small.items()))


def _place(path: Path) -> str:
    """Where a command finds an input file: at the same relative path, or at its absolute path without the root."""
    parts = [part for part in path.parts if part not in (path.anchor, "..", ".")]
    return "/".join(parts)


# -- scripts ---------------------------------------------------------------------------------


def load_script(script: JobScript, path: Path) -> types.ModuleType:
    """Execute a script's top level in this process, to call its ``inputs`` or local ``finish``."""
    module = types.ModuleType("p2pgrid_script")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    code = compile(script.source, str(path), "exec")
    exec(code, module.__dict__)  # noqa: S102 - it is the user's own script, on the user's own machine
    return module


def items_of(script: JobScript, path: Path, arguments: Sequence[str], over: Sequence[str] | None) -> Iterable[Any]:
    """The items of a job: ``--over``, else ``inputs(*arguments)``, else the arguments themselves.

    A word that names an existing file becomes that file.
    """
    if over is not None:
        return [_item(word) for word in over]
    if not script.has_inputs:
        return [_item(word) for word in arguments]
    found: Iterable[Any] = load_script(script, path).inputs(*arguments)
    return found


def _item(word: str) -> str | Path:
    return Path(word) if is_file(word) else word


def is_file(word: str) -> bool:
    """Whether a word names a file. Words that could not name one, too long or with odd characters, do not."""
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        return False
