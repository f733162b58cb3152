"""The runner's four functions: the counterpart of ``p2pgrid.runtimes.worker.guest``, and of ``units`` for everything a unit can observe."""

from __future__ import annotations

import functools
import gc
import linecache
import marshal
import struct
import sys
import traceback
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

from . import loop, world
from .decoding import Decoder, MalformedError
from .encoding import Encoder, RefusedError
from .output import Output
from .storage import FOLDER, INPUTS, storage

OK, RAISED, TOO_LARGE, UNENCODABLE = 0, 1, 4, 5
MAP, REDUCE, FINISH = range(3)
MODULE_NAME = "p2pgrid_job"
ERROR_CHARS_MAX = 4096
FILE_NAME_CHARS_MAX = 255
RETURNED_BYTES_MAX = 64 << 20
"""Of all files that one unit returns: they cross as a whole."""
HEADER = struct.Struct("<BQQI")
"""Before the seed: kind, index of the first unit, largest result in bytes, number of units."""
REPORT = struct.Struct("<II")
"""Behind the outcomes: sizes of what was printed and of the files."""
SEED_BYTES = 32
_BLOB_BYTES = 32

output = Output()


class Runner:
    """The one job of this guest."""

    def __init__(self) -> None:
        self.module = ModuleType(MODULE_NAME)
        self.entry = "work"
        self.contents: dict[bytes, bytearray] = {}
        """Input files by blob id."""
        self.inputs: dict[str, bytes] = {}
        """Paths of input files, and the encoded references they came as."""
        self.returned: list[tuple[int, int, str, bytes]] = []
        """(unit, where its blob id stands in the results, name, content) of files that units returned."""
        self.position = 0
        self.encoder = Encoder(self.on_path)
        self.decoder = Decoder(self.on_file)
        self.results = bytearray()

    def load(self, request: bytes) -> bytes:
        """Run the job's top level. Empty, or why it failed."""
        source, file_name, entry, seed, code = plain_decoder.decode(request)
        self.entry = entry
        world.begin()
        world.chance.begin_job(seed)
        world.chance.begin_unit(0)
        try:
            linecache.cache[file_name] = (len(source), None, source.splitlines(keepends=True), file_name)
            module = self.module
            module.__file__ = file_name
            module.__loader__ = Text(source)  # type: ignore[assignment]
            sys.modules[MODULE_NAME] = module
            program: CodeType = marshal.loads(code) if code else compile(source, file_name, "exec", dont_inherit=True)  # noqa: S302 - a guest of this job made it
            exec(program, module.__dict__)  # noqa: S102 - running it is the purpose
            if not callable(getattr(module, entry, None)):
                raise NameError(f"the job defines no function {entry}")
        except BaseException as error:  # noqa: BLE001 - foreign code may raise anything
            return describe_exception(error, 1)
        finally:
            storage.clear()
        gc.freeze()  # What the job made while it loaded is looked at by no later collection.
        return b""

    def place(self, request: bytes) -> bytes:
        """A piece of an input file, or with an empty blob id: forget all of them."""
        blob, piece = plain_decoder.decode(request)
        try:
            if blob:
                self.contents.setdefault(blob, bytearray()).extend(piece)
            else:
                self.contents.clear()
        except MemoryError:
            return b"no memory"
        return b""

    def run(self, request: bytes) -> bytes:
        """Run units: a header, then the inputs. Answers with a header, then the results."""
        kind, first, limit, count = HEADER.unpack_from(request)
        at = HEADER.size + SEED_BYTES
        world.chance.begin_job(request[HEADER.size : at])
        results = self.results = bytearray()
        outcomes = bytearray()
        try:
            call: Callable[[Any], Any] = self.function_for(kind)
        except NameError as error:
            call = raiser(error)
        lengths = struct.unpack_from(f"<{count}I", request, at)
        at += 4 * count
        for position, length in enumerate(lengths):
            self.position = position
            outcomes.append(self.unit(call, first + position, request, at, length, limit, results))
            at += length
        return b"".join((outcomes, self.report(), results))

    def report(self) -> bytes:
        """What else there is to say: what was printed, and the files that were returned."""
        log = output.take()
        if not self.returned:
            return REPORT.pack(len(log), 0) + log
        files = bytearray()
        plain_encoder.append([list(file) for file in self.returned], files)
        self.returned.clear()
        return REPORT.pack(len(log), len(files)) + log + files

    def unit(self, call: Callable[[Any], Any], index: int, data: bytes, at: int, length: int, limit: int, results: bytearray) -> int:
        """Run one unit and append what it gives. Its outcome."""
        before, files = len(results), len(self.returned)
        world.clock.passed_ns = 0
        world.chance.begin_unit(index)
        try:
            try:
                item = self.decoder.decode_part(data, at, at + length)
            except MalformedError as error:
                raise ValueError(f"the input cannot be read: {error}") from None
            self.encoder.append(call(item), results)
            outcome = OK if len(results) - before <= limit else TOO_LARGE
        except RefusedError as error:
            outcome = UNENCODABLE
            describe("BadDataError", f"{error.message}{f' ({error.hint})' if error.hint else ''}", "", results)
        except BaseException as error:  # noqa: BLE001 - foreign code may raise anything
            outcome = RAISED
            del results[before:]
            results += describe_exception(error, 1)
        if outcome:
            del self.returned[files:]
            if outcome == TOO_LARGE:
                size_bytes = len(results) - before
                del results[before:]
                describe("TooLarge", f"the result has {size_bytes} bytes, more than the {limit} allowed", "", results)
        if storage.touched:
            storage.clear()
        if self.inputs:
            self.inputs.clear()
            storage.forget_inputs()
        return outcome

    def function_for(self, kind: int) -> Callable[[Any], Any]:
        """The function that takes one input of this kind. Raises NameError when the job does not define it."""
        name = {MAP: self.entry, REDUCE: "reduce", FINISH: "finish"}.get(kind, "")
        function: Callable[..., Any] | None = getattr(self.module, name, None) if name else None
        if function is None or not callable(function):
            raise NameError(f"the job defines no function {name or kind}")
        if kind == REDUCE:
            return functools.partial(functools.reduce, function)
        return function

    def on_file(self, body: bytes) -> Any:
        """An input file becomes a path in memory that ends in the name its owner knows."""
        from pathlib import Path

        blob, size_bytes, name = reference_of(body)
        content = self.contents.get(blob)
        if content is None or len(content) != size_bytes:
            raise ValueError(f"the file {name} was not brought along")
        number = str(len(self.inputs))
        storage.root[INPUTS[1:]][number] = {name: content}
        storage.read_only.add(id(content))
        path = f"{INPUTS}/{number}/{name}"
        self.inputs[path] = body
        return Path(path)

    def on_path(self, path: Any, at: int) -> bytes:
        """The reference of a path that a unit returned; the host fills the blob id in."""
        where = storage.absolute(path)
        if where in self.inputs:
            return self.inputs[where]
        if not where.startswith(FOLDER + "/"):
            raise RefusedError(f"the file {path} is outside of the unit's folder", "write it under the current directory")
        name = where.rpartition("/")[2]
        if not is_plain_name(name):
            raise RefusedError(f"the file name {name[:FILE_NAME_CHARS_MAX]!r} cannot be sent")
        try:
            content = storage.find(where)
        except OSError as error:
            raise RefusedError(f"the file {path} cannot be read: {error.strerror}") from error
        if isinstance(content, dict):
            raise RefusedError(f"{path} is not a regular file", "a folder can be packed with shutil.make_archive")
        if len(content) + sum(len(file[3]) for file in self.returned if file[0] == self.position) > RETURNED_BYTES_MAX:
            raise RefusedError(f"the files that the unit returns have more than {RETURNED_BYTES_MAX} bytes", "write less")
        body = bytearray()
        plain_encoder.append([bytes(_BLOB_BYTES), len(content), name], body)
        # The header of the extension is 2 or 3 bytes and its code one; the array's 1, the blob id's 2.
        header_bytes = 2 if len(body) in (1, 2, 4, 8, 16) else 3 if len(body) < 256 else 4
        self.returned.append((self.position, at + header_bytes + 3, name, bytes(content)))
        folder, last = storage.parent(where)
        del folder[last]
        return bytes(body)


class Text:
    """The loader of a module that exists as text only."""

    def __init__(self, source: str) -> None:
        self._source = source

    def get_source(self, name: str) -> str:
        """As importlib's loaders."""
        return self._source


def _no_path(path: Any, at: int) -> bytes:
    raise RefusedError("no paths here")


def _no_file(body: bytes) -> Any:
    raise MalformedError("no files here")


plain_encoder = Encoder(_no_path)
plain_decoder = Decoder(_no_file)


def reference_of(body: bytes) -> tuple[bytes, int, str]:
    """(blob id, size in bytes, name) of an encoded reference. Raises MalformedError."""
    reference = Decoder(_no_file).decode(body)
    if not isinstance(reference, list) or len(reference) < 3:
        raise MalformedError("not a value: a file reference is malformed")
    blob, size_bytes, name = reference[:3]
    if type(blob) is not bytes or len(blob) != _BLOB_BYTES or type(size_bytes) is not int or size_bytes < 0 or type(name) is not str:
        raise MalformedError("not a value: a file reference is malformed")
    if not is_plain_name(name):
        raise MalformedError("not a value: a file reference is malformed")
    return blob, size_bytes, name


def is_plain_name(name: str) -> bool:
    """As ``p2pgrid.model.values.is_plain_name``."""
    return 0 < len(name) <= FILE_NAME_CHARS_MAX and name not in (".", "..") and name.isprintable() and "/" not in name and "\\" not in name


def raiser(error: Exception) -> Callable[[Any], Any]:
    """A function of a unit that only fails."""

    def raise_it(item: Any) -> Any:
        raise error

    return raise_it


def describe(kind: str, message: str, trace: str, out: bytearray) -> None:
    """As ``frames.describe``."""
    plain_encoder.append({"type": shorten(kind), "message": shorten(message), "traceback": shorten(trace)}, out)


def shorten(text: str) -> str:
    """As ``frames.shorten``."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= ERROR_CHARS_MAX:
        return text
    head = ERROR_CHARS_MAX // 4
    return f"{text[:head]}\n...\n{text[-(ERROR_CHARS_MAX - head - 5) :]}"


def describe_exception(error: BaseException, skip_frames: int) -> bytes:
    """As ``failures.describe_exception``."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ in ("builtins", MODULE_NAME) else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001 - its __str__ is foreign, too
        message = "(its message cannot be shown)"
    out = bytearray()
    describe(str(name), message, _traceback(error, skip_frames), out)
    return bytes(out)


def _traceback(error: BaseException, skip_frames: int) -> str:
    try:
        trace = error.__traceback__
        while skip_frames and trace is not None:
            trace = trace.tb_next
            skip_frames -= 1
        return "".join(traceback.TracebackException(type(error), error, trace, limit=-20).format())
    except BaseException:  # noqa: BLE001 - it shows foreign objects
        return ""


def compile_source(source: str, file_name: str) -> bytes:
    """0x00 and the marshalled code, or 0x01 and why there is none."""
    try:
        return b"\0" + marshal.dumps(compile(source, file_name, "exec", dont_inherit=True))
    except BaseException as error:  # noqa: BLE001 - a hostile source may end in any error
        return b"\1" + describe_exception(error, 1)


def settle() -> None:
    """The last step of the build: what comes from here on is the state every guest begins with."""
    world.install()
    loop.install()
    sys.stdout = sys.stderr = output.stream
    gc.collect()
    gc.freeze()
