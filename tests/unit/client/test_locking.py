"""Locking dependencies at the submitter, against an index on loopback; and once against a real one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from p2pgrid.client import locking
from p2pgrid.client.locking import JobEnvironment, LockLimits
from p2pgrid.errors import BadDataError, ConfigError, IntegrityError, P2PGridError, UnreachableError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.environment import Environment
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.model.script import JobScript, parse_script
from p2pgrid.offload import InlineOffload, ThreadOffload
from p2pgrid.runtimes import registry, uv
from p2pgrid.runtimes.interpreters import Target, this_interpreter
from p2pgrid.runtimes.packages import EnvironmentPolicy, Environments
from p2pgrid.runtimes.registry import LockedFile
from p2pgrid.wire.codec import decode
from tests.native import needs
from tests.unit.runtimes.wheel_maker import Index, index_of, make_wheel

DAY_MS = 24 * 3600 * 1000
HERE = this_interpreter().target
ARM = Target("linux-aarch64", "3.13")


def script_of(*dependencies: str, python: str = ">=3.11") -> JobScript:
    lines = ["# /// script", f'# requires-python = "{python}"', f"# dependencies = {list(dependencies)!r}", "# ///"]
    return parse_script("\n".join(lines) + "\ndef work(item):\n    return item\n", "job.py")


class Submitter:
    """Somebody's machine: a cache, an index, and what was reported."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder, index
        self.told: list[str] = []
        self.now_ms = 1_000_000 * DAY_MS
        self.environment = {
            "PATH": os.defpath,
            "HOME": str(folder),
            "UV_CACHE_DIR": str(folder / "uv"),
            "UV_DEFAULT_INDEX": index.address,
            "UV_HTTP_RETRIES": "0",
        }

    async def lock(
        self, script: JobScript, targets: Sequence[Target] = (), limits: LockLimits = locking.DEFAULT_LIMITS
    ) -> JobEnvironment | None:
        return await locking.lock(
            script,
            targets,
            self.folder / "cache",
            self.told.append,
            offload=InlineOffload(),
            wall_ms=lambda: self.now_ms,
            environment=self.environment,
            limits=limits,
        )

    async def locked(self, script: JobScript, targets: Sequence[Target] = ()) -> JobEnvironment:
        found = await self.lock(script, targets)
        assert found is not None
        return found


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with index_of(tmp_path / "index") as index:
        yield index


@pytest.fixture
def submitter(tmp_path: Path, index: Index) -> Submitter:
    return Submitter(tmp_path / "home", index)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return tmp_path / "made"


def names(found: JobEnvironment) -> list[str]:
    return [wheel.file_name for wheel in found.environment.wheels]


async def test_a_script_without_dependencies_takes_nothing_along(submitter: Submitter) -> None:
    assert await submitter.lock(script_of()) is None
    assert submitter.index.asked == []


async def test_what_is_shipped_names_no_host_and_decodes_strictly(submitter: Submitter, index: Index, made: Path) -> None:
    index.add("toy", make_wheel(made, metadata="Requires-Dist: tiny>=2\n"), make_wheel(made, version="0.9"))
    index.add("tiny", make_wheel(made, "tiny", "2.5"))
    found = await submitter.locked(script_of("toy"))
    assert found.environment.names == {"toy", "tiny"}
    assert names(found) == ["tiny-2.5-py3-none-any.whl", "toy-1.0-py3-none-any.whl"]
    assert decode(found.encoded, Environment) == found.environment
    assert blob_id_of(found.encoded) == found.blob
    assert b"127.0.0.1" not in found.encoded
    assert b"http" not in found.encoded
    for wheel in found.environment.wheels:
        content = found.files[BlobId(wheel.blob)].read_bytes()
        assert (blob_id_of(content), len(content)) == (wheel.blob, wheel.size_bytes)


async def test_each_kind_of_machine_gets_the_file_that_fits_most_of_its_kind(submitter: Submitter, index: Index, made: Path) -> None:
    short = f"cp{HERE.python.replace('.', '')}"
    tags = [f"{short}-{short}-manylinux_2_17_x86_64", f"{short}-{short}-manylinux_2_28_x86_64", "cp313-cp313-manylinux_2_17_aarch64"]
    tags += ["cp313-cp313-win_amd64", "cp39-cp39-manylinux_2_17_x86_64"]
    index.add("toy", *[make_wheel(made, tags=tag) for tag in tags])
    here = Target("linux-x86_64", HERE.python)
    found = await submitter.locked(script_of("toy"), [here, ARM, ARM])
    assert names(found) == sorted(f"toy-1.0-{tag}.whl" for tag in (tags[0], tags[2]))
    assert all(line.count("--hash=sha256:") >= 3 for line in found.environment.requirements.splitlines())


async def test_markers_decide_what_a_machine_is_sent(submitter: Submitter, index: Index, made: Path) -> None:
    windows = "Requires-Dist: winonly; sys_platform == 'win32'\nRequires-Dist: new; python_version >= '3.13'\n"
    index.add("toy", make_wheel(made, metadata=windows))
    index.add("winonly", make_wheel(made, "winonly"))
    index.add("new", make_wheel(made, "new"))
    here = names(await submitter.locked(script_of("toy")))
    assert ("new-1.0-py3-none-any.whl" in here) == (this_interpreter().markers[0]["python_version"] not in ("3.11", "3.12"))
    found = await submitter.locked(script_of("toy"), [ARM])
    assert "new-1.0-py3-none-any.whl" in names(found)
    assert not [name for name in names(found) if name.startswith("winonly")]
    assert "winonly" in found.environment.names


async def test_a_second_submit_asks_nobody(submitter: Submitter, index: Index, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add("toy", make_wheel(made))
    first = await submitter.locked(script_of("toy"))
    asked = len(index.asked)
    monkeypatch.setattr(locking, "resolve", None)
    assert await submitter.locked(script_of("toy")) == first
    assert len(index.asked) == asked


async def test_a_lock_of_yesterday_is_made_anew_but_serves_when_the_index_is_away(submitter: Submitter, index: Index, made: Path) -> None:
    index.add("toy", make_wheel(made))
    await submitter.locked(script_of("toy"))
    index.add("toy", make_wheel(made), make_wheel(made, version="1.1"))
    assert names(await submitter.locked(script_of("toy"))) == ["toy-1.0-py3-none-any.whl"]
    submitter.now_ms += DAY_MS
    # uv has its own idea of how long a page of the index is fresh.
    submitter.environment["UV_CACHE_DIR"] += "-new"
    assert names(await submitter.locked(script_of("toy"))) == ["toy-1.1-py3-none-any.whl"]
    submitter.now_ms += DAY_MS
    submitter.environment["UV_CACHE_DIR"] += "-newer"
    index.shutdown()
    index.server_close()
    assert names(await submitter.locked(script_of("toy"))) == ["toy-1.1-py3-none-any.whl"]
    assert "are used" in submitter.told[-1]


async def test_a_damaged_file_in_the_cache_is_fetched_anew(submitter: Submitter, index: Index, made: Path) -> None:
    index.add("toy", make_wheel(made))
    first = await submitter.locked(script_of("toy"))
    (place,) = first.files.values()
    place.write_bytes(b"damage")
    assert await submitter.locked(script_of("toy")) == first
    assert blob_id_of(place.read_bytes()) in first.files


# -- what cannot be ----------------------------------------------------------------------------


async def refused(submitter: Submitter, script: JobScript, kind: type[P2PGridError], why: str, **more: object) -> P2PGridError:
    with pytest.raises(kind, match=why) as caught:
        await submitter.lock(script, **more)  # type: ignore[arg-type]
    assert caught.value.hint or kind is IntegrityError
    assert submitter.index.address not in caught.value.message
    return caught.value


async def test_a_package_that_exists_only_as_source_is_named(submitter: Submitter, index: Index, tmp_path: Path) -> None:
    source = tmp_path / "onlysource-1.0.tar.gz"
    source.write_bytes(b"setup.py would run")
    index.add("onlysource", source)
    error = await refused(submitter, script_of("onlysource"), BadDataError, "onlysource")
    assert "only as source" in error.message


async def test_a_package_that_nobody_has_or_versions_that_exclude_one_another_are_told(
    submitter: Submitter, index: Index, made: Path
) -> None:
    await refused(submitter, script_of("nobody-has-this"), BadDataError, "nobody-has-this")
    index.add("toy", make_wheel(made))
    error = await refused(submitter, script_of("toy>=2"), BadDataError, "toy>=2")
    assert len(error.message) < 700


async def test_no_wheel_for_any_machine_is_an_error_and_for_some_a_sentence(submitter: Submitter, index: Index, made: Path) -> None:
    index.add("toy", make_wheel(made, tags="cp313-cp313-manylinux_2_17_aarch64"))
    away = [Target("windows-amd64", "3.12")]
    error = await refused(submitter, script_of("toy"), BadDataError, "toy 1.0: no wheel for windows-amd64 with Python 3.12", targets=away)
    assert error.reason == Reason.NO_WHEEL
    found = await submitter.locked(script_of("toy"), [ARM])
    assert names(found) == ["toy-1.0-cp313-cp313-manylinux_2_17_aarch64.whl"]
    assert any(HERE.platform in sentence for sentence in found.unserved)
    assert found.unserved[0] in submitter.told


async def test_an_index_that_is_not_there_is_a_matter_of_the_network(submitter: Submitter, index: Index) -> None:
    submitter.environment["UV_DEFAULT_INDEX"] = "http://user:secret@127.0.0.1:9/simple/"
    error = await refused(submitter, script_of("toy"), UnreachableError, "index cannot be reached")
    assert "secret" not in error.message + error.hint


async def test_a_python_that_no_node_has_is_refused(submitter: Submitter) -> None:
    await refused(submitter, script_of("toy", python="<3.11"), BadDataError, "no node can have")


async def test_without_uv_a_script_with_dependencies_is_refused(submitter: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise ConfigError("uv is not installed", hint="pip install uv")

    monkeypatch.setattr(uv, "find_uv", missing)
    await refused(submitter, script_of("toy"), ConfigError, "uv is not installed")


async def test_a_file_that_is_not_the_one_that_was_locked_is_refused(submitter: Submitter, index: Index, made: Path) -> None:
    index.add("toy", make_wheel(made, files={"big.bin": os.urandom(200_000)}))
    script = script_of("toy")
    await submitter.locked(script)
    for path in (submitter.folder / "cache" / "wheels").iterdir():
        path.unlink()
    (index.folder / "files" / "toy-1.0-py3-none-any.whl").write_bytes(b"something else")
    await refused(submitter, script, IntegrityError, "not the file that was locked")
    assert list((submitter.folder / "cache" / "wheels").iterdir()) == []


async def test_too_many_bytes_or_files_are_refused(submitter: Submitter, index: Index, made: Path) -> None:
    for name in ("toy", "tiny"):
        index.add(name, make_wheel(made, name, files={f"{name}.bin": os.urandom(60_000)}))
    script = script_of("toy", "tiny")
    for limits in (LockLimits(wheels=1), LockLimits(wheel_bytes=10_000), LockLimits(wheels_bytes=100_000)):
        with pytest.raises(BadDataError) as caught:
            await submitter.lock(script, limits=limits)
        assert caught.value.reason == Reason.TOO_LARGE


async def test_the_cache_keeps_within_its_bound(submitter: Submitter, index: Index, made: Path) -> None:
    for name in ("one", "two"):
        index.add(name, make_wheel(made, name, files={f"{name}.bin": os.urandom(60_000)}))
        await submitter.lock(script_of(name), limits=LockLimits(cache_bytes=100_000))
    left = list((submitter.folder / "cache" / "wheels").iterdir())
    assert [path.stem for path in left] == [(await submitter.locked(script_of("two"))).environment.wheels[0].sha256.hex()]


def test_the_password_of_an_index_goes_to_its_own_host_only() -> None:
    told = {"UV_INDEX": "mine=https://name:p%40ss@example.invalid/simple", "PIP_INDEX_URL": "https://other:x@pip.invalid/simple"}
    assert registry._credentials("https://example.invalid/files/a.whl", told)["Authorization"].startswith("Basic ")
    assert registry._credentials("https://pip.invalid/files/a.whl", told)
    for elsewhere in ("http://example.invalid/a.whl", "https://example.invalid:8443/a.whl", "https://evil.invalid/a.whl", "file:///a.whl"):
        assert registry._credentials(elsewhere, told) == {}


@pytest.mark.parametrize(
    "lock",
    [
        "not toml [",
        "[[packages]]\nname = 'toy'\nversion = '1'\n",
        "[[packages]]\nname = 'toy'\nversion = '1'\nwheels = [{ url = 'ftp://host/toy-1-py3-none-any.whl', hashes = { sha256 = 'x' } }]\n",
        "[[packages]]\nname = 'toy'\nversion = '1'\nwheels = [{ url = 'https://host/toy.exe', hashes = { sha256 = 'x' } }]\n",
        "packages = 5\n",
    ],
)
def test_a_lock_that_holds_anything_but_wheels_is_refused(lock: str) -> None:
    with pytest.raises(BadDataError):
        registry.read_lock(lock)


def test_a_download_that_grows_too_long_leaves_nothing(tmp_path: Path, index: Index, made: Path) -> None:
    index.add("toy", make_wheel(made))
    file = LockedFile("toy-1.0-py3-none-any.whl", index.address.replace("simple/", "files/toy-1.0-py3-none-any.whl"), "0" * 64, 0)
    with pytest.raises(BadDataError, match="larger than 10"):
        registry.download(file, tmp_path / "toy.whl", 10, {})
    with pytest.raises(UnreachableError, match="cannot be downloaded"):
        registry.download(file._replace(url=file.url + "x"), tmp_path / "toy.whl", 10, {})
    assert not list(tmp_path.glob("toy.whl*"))


# -- a real index ------------------------------------------------------------------------------


@pytest.fixture
async def offload() -> AsyncIterator[ThreadOffload]:
    offload = ThreadOffload()
    yield offload
    await offload.close()


@pytest.mark.timeout(120)
@pytest.mark.slow
async def test_numpy_from_an_index_is_imported_on_a_worker_that_has_none(tmp_path: Path, offload: ThreadOffload) -> None:
    """Locked and fetched here, built as a worker does, imported by a bare interpreter."""
    bare = "import importlib.util, sys; sys.exit(importlib.util.find_spec('numpy') is not None)"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", bare], check=False, timeout=20).returncode == 0
    try:
        async with asyncio.timeout(100):
            found = await locking.lock(
                script_of("numpy>=2"),
                [Target(HERE.platform, f"3.{minor}") for minor in (11, 12, 13)],
                tmp_path / "cache",
                print,
                offload=offload,
                wall_ms=lambda: time.time_ns() // 1_000_000,
            )
    except (UnreachableError, TimeoutError) as error:
        needs(False, f"no package index can be reached: {error}")
        raise
    assert found is not None
    assert len(names(found)) >= 3, "a file for each Python"
    environments = Environments(
        tmp_path / "environments", EnvironmentPolicy(mode="listed", names=frozenset({"numpy"})), offload, time.monotonic
    )
    await environments.start()
    wanted = environments.wanted(found.environment)
    assert len(wanted) == 1
    folder = await environments.build(found.environment, {wheel.file_name: found.files[BlobId(wheel.blob)] for wheel in wanted})
    code = f"import sys; sys.path.append({str(folder)!r}); import numpy; print(int(numpy.arange(10).sum()), numpy.__file__)"
    ran = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.split() == ["45", str(folder / "numpy" / "__init__.py")], ran.stderr
    environments.release(folder)
