"""Building the packages of a job on a worker: what is refused, what is harmless, what is kept and what goes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from p2pgrid.errors import ConfigError, IntegrityError, P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.environment import Environment
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes import packages, uv
from p2pgrid.runtimes.interpreters import Target, interpreter_of, this_interpreter
from p2pgrid.runtimes.packages import EnvironmentPolicy, Environments
from p2pgrid.runtimes.wheels import WheelBounds
from tests.unit.runtimes.wheel_maker import environment_of, index_of, make_wheel, pin_of


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def started(folder: Path, policy: EnvironmentPolicy | None = None, clock: Clock | None = None) -> Environments:
    found = Environments(folder, policy or EnvironmentPolicy(), InlineOffload(), clock or Clock())
    await found.start()
    return found


async def built(environments: Environments, *wheels: Path, environment: Environment | None = None) -> Path:
    environment = environment or environment_of(*wheels)
    environments.check(environment)
    return await environments.build(environment, {wheel.name: wheel for wheel in wheels})


def run_isolated(folder: Path, code: str) -> str:
    """As unit processes run: without site, the folder appended to the path."""
    program = f"import sys; sys.path.append({str(folder)!r})\n{code}"
    ran = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


async def test_packages_are_importable_from_the_folder_and_nobody_may_write_it(tmp_path: Path) -> None:
    environments = await started(tmp_path / "cache")
    folder = await built(
        environments, make_wheel(tmp_path, "toy"), make_wheel(tmp_path, "tiny", "2.1", {"tiny_parts/__init__.py": "x = 7"})
    )
    assert run_isolated(folder, "import toy, tiny_parts; print(toy.version, tiny_parts.x)") == "1.0 7"
    names = run_isolated(folder, "import importlib.metadata as m; print(sorted(d.name for d in m.distributions(path=sys.path[-1:])))")
    assert names == "['tiny', 'toy']"
    for path in [folder, *folder.rglob("*")]:
        mode = path.stat().st_mode
        assert not mode & 0o222
        assert mode & 0o444 == 0o444
        assert not path.is_symlink()


async def test_what_was_built_is_found_again_also_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environments = await started(tmp_path / "cache")
    wheel = make_wheel(tmp_path)
    environment = environment_of(wheel)
    assert await environments.find(environment) is None
    folder = await built(environments, wheel)
    assert await environments.find(environment) == folder
    again = await started(tmp_path / "cache")
    monkeypatch.setattr(packages, "run_uv", None)
    assert await again.find(environment) == folder


async def test_nothing_of_a_hostile_wheel_runs_or_lands_outside(tmp_path: Path) -> None:
    """A .pth file, scripts, entry points, data, headers, a sitecustomize, modules named like those of the installer."""
    touched = tmp_path / "touched"
    attack = f"import pathlib; pathlib.Path({str(touched)!r}).write_text('x')\n"
    data = "toy-1.0.data"
    wheel = make_wheel(
        tmp_path / "wheels",
        files={
            "evil.pth": attack.strip(),
            "__editable__evil.pth": attack.strip(),
            "sitecustomize.py": attack,
            "usercustomize.py": attack,
            "json.py": attack,
            "platform.py": attack,
            "setup.py": attack,
            f"{data}/purelib/late.pth": attack.strip(),
            f"{data}/scripts/hello": "#!python\n" + attack,
            f"{data}/scripts/uv": "#!/bin/sh\ntouch " + str(touched),
            f"{data}/data/etc/passwd": "root",
            f"{data}/data/lib/python3/site-packages/more.pth": attack.strip(),
            f"{data}/headers/toy.h": "int x;",
            "toy-1.0.dist-info/entry_points.txt": "[console_scripts]\ntoy = toy:main\n[gui_scripts]\ntoyw = toy:main\n",
        },
    )
    environments = await started(tmp_path / "cache")
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    folder = await built(environments, wheel)
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    assert sorted(entry.name for entry in (tmp_path / "cache").iterdir()) == [folder.parent.name]
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["mark", "packages"]
    assert (folder / "evil.pth").exists()
    assert run_isolated(folder, "import toy, json, platform; print(toy.version, json.__file__.startswith(sys.base_prefix))") == "1.0 True"
    assert not touched.exists()
    # The control: where site reads the folder, the same file does run.
    subprocess.run([sys.executable, "-I", "-c", f"import site; site.addsitedir({str(folder)!r})"], check=False, timeout=20)
    assert touched.exists()


@pytest.mark.parametrize("tool", ["[tool.uv]\nindex-url = 'http://127.0.0.1:9'\n", "[pip]\n"])
async def test_settings_lying_around_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    for name in ("uv.toml", "pyproject.toml"):
        (tmp_path / name).write_text(tool if name == "pyproject.toml" else "this is no toml [")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "UV_TARGET": "/nowhere",
        "UV_INDEX_URL": "http://127.0.0.1:9",
        "UV_CONSTRAINT": "/none",
        "PYTHONPATH": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    environments = await started(tmp_path / "cache")
    folder = await built(environments, make_wheel(tmp_path / "wheels"))
    assert run_isolated(folder, "import toy; print(toy.version)") == "1.0"


# -- refusals --------------------------------------------------------------------------------


async def refusal(environments: Environments, *wheels: Path, environment: Environment | None = None) -> P2PGridError:
    with pytest.raises(P2PGridError) as caught:
        await built(environments, *wheels, environment=environment)
    left = sorted(path.name for path in environments._folder.iterdir())
    assert not [name for name in left if name.startswith("building")]
    return caught.value


async def test_off_refuses_and_listed_wants_every_distribution_on_the_list(tmp_path: Path) -> None:
    toy, tiny = make_wheel(tmp_path, "Toy_Box"), make_wheel(tmp_path, "tiny")
    off = await started(tmp_path / "off", EnvironmentPolicy(mode="off"))
    assert (await refusal(off, toy)).reason == Reason.NO_ENVIRONMENT
    off.check(environment_of(toy), own=True)
    listed = await started(tmp_path / "listed", EnvironmentPolicy(mode="listed", names=frozenset({"TOY.box"})))
    error = await refusal(listed, toy, tiny)
    assert error.reason == Reason.PACKAGE_REFUSED
    assert "tiny" in error.message
    assert "toy-box" not in error.message
    assert (await built(listed, toy)).is_dir()


async def test_a_listed_name_in_a_lock_for_other_systems_counts_too(tmp_path: Path) -> None:
    toy, evil = make_wheel(tmp_path), make_wheel(tmp_path, "evil")
    listed = await started(tmp_path / "listed", EnvironmentPolicy(mode="listed", names=frozenset({"toy"})))
    environment = environment_of(toy, evil, pins=[pin_of(toy), pin_of(evil, marker="sys_platform == 'win32'")])
    assert (await refusal(listed, toy, evil, environment=environment)).reason == Reason.PACKAGE_REFUSED


async def test_another_python_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    environments = await started(tmp_path / "cache")
    error = await refusal(environments, wheel, environment=environment_of(wheel, requires_python="<3.11"))
    assert error.reason == Reason.NO_WHEEL


async def test_a_program_named_as_the_interpreter_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, files={"toy-1.0.data/scripts/python": "#!/bin/sh\n"})
    assert (await refusal(await started(tmp_path / "cache"), wheel)).reason == Reason.BUILD_FAILED


async def test_a_wheel_that_is_missing_or_for_another_machine_is_named(tmp_path: Path) -> None:
    environments = await started(tmp_path / "cache")
    wheel = make_wheel(tmp_path)
    error = await refusal(environments, environment=environment_of(wheel))
    assert error.reason == Reason.NO_WHEEL
    assert "toy 1.0" in error.message
    foreign = make_wheel(tmp_path, "foreign", tags="cp311-cp311-win_amd64")
    with pytest.raises(RefusedError, match=r"foreign 1\.0"):
        environments.wanted(environment_of(foreign))


async def test_only_what_this_machine_wants_is_asked_for(tmp_path: Path) -> None:
    best = str(this_interpreter().tags[0])
    fast, plain = make_wheel(tmp_path, tags=best), make_wheel(tmp_path)
    windows = make_wheel(tmp_path, "winonly")
    pins = [pin_of(fast, plain), pin_of(windows, marker="sys_platform == 'win32'")]
    environment = environment_of(fast, plain, windows, pins=pins)
    environments = await started(tmp_path / "cache")
    assert [wheel.file_name for wheel in environments.wanted(environment)] == [fast.name]
    assert run_isolated(await built(environments, fast, environment=environment), "import toy; print(toy.version)") == "1.0"


async def test_a_file_with_other_bytes_than_the_lock_says_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    environment = environment_of(wheel)
    make_wheel(tmp_path, files={"more.py": ""})
    error = await refusal(await started(tmp_path / "cache"), wheel, environment=environment)
    assert isinstance(error, IntegrityError)
    assert error.reason == Reason.BAD_PACKAGE


async def test_hostile_archives_are_refused_before_uv_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "run_uv", None)
    policy = EnvironmentPolicy(bounds=WheelBounds(entries=50, unpacked_bytes=1 << 20), wheels_bytes_max=1 << 20)
    environments = await started(tmp_path / "cache", policy)
    half = {"half.bin": os.urandom(600_000)}
    for number, wheels in enumerate(
        [
            [make_wheel(tmp_path / "1", files={"../../evil.py": "x"})],
            [make_wheel(tmp_path / "2", files={"zeros": bytes(20 << 20)})],
            [make_wheel(tmp_path / "3", files={f"f/{name}": "" for name in range(60)})],
            [
                make_wheel(tmp_path / "4", "a", files={"a.bin": bytes(600_000)}),
                make_wheel(tmp_path / "4", "b", files={"b.bin": bytes(600_000)}),
            ],
        ]
    ):
        error = await refusal(environments, *wheels)
        assert (number, error.reason) == (number, Reason.BAD_PACKAGE)
    error = await refusal(environments, make_wheel(tmp_path / "5", "a", files=half), make_wheel(tmp_path / "5", "b", files=half))
    assert error.reason == Reason.TOO_LARGE


async def test_metadata_that_contradicts_the_name_fails_the_build(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, files={})
    raw = wheel.read_bytes()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy.py", "")
        archive.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: numpy\nVersion: 9\n")
        archive.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("toy-1.0.dist-info/RECORD", "")
    assert raw != wheel.read_bytes()
    assert (await refusal(await started(tmp_path / "cache"), wheel)).reason == Reason.BUILD_FAILED


# -- the cache -------------------------------------------------------------------------------


async def test_the_longest_unused_goes_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    clock = Clock()
    policy = EnvironmentPolicy(cache_bytes_max=500_000, kept_s=60)
    environments = await started(tmp_path / "cache", policy, clock)
    wheels = [make_wheel(tmp_path, f"toy{number}", files={f"data{number}.bin": os.urandom(200_000)}) for number in range(4)]
    first = await built(environments, wheels[0])
    second = await built(environments, wheels[1])
    assert (await refusal(environments, wheels[2])).reason == Reason.NO_PACKAGE_ROOM
    environments.release(second)
    assert (await refusal(environments, wheels[2])).reason == Reason.NO_PACKAGE_ROOM, "a warm process may still import from it"
    clock.now_s += 61
    third = await built(environments, wheels[2])
    assert first.exists()
    assert not second.exists()
    environments.release(third)
    environments.release(first)
    clock.now_s += 1
    assert await environments.find(environment_of(wheels[0])) == first
    environments.release(first)
    clock.now_s += 61
    fourth = await built(environments, wheels[3])
    assert not third.exists()
    assert first.exists()
    environments.release(fourth)


async def test_what_a_crash_left_is_cleared_away_and_what_it_damaged_is_not_used(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    environments = await started(cache)
    wheels = [make_wheel(tmp_path, name) for name in ("toy", "tiny")]
    folders = [await built(environments, wheel) for wheel in wheels]
    (cache / "building-7" / "whole" / "packages").mkdir(parents=True)
    (cache / ("a" * 64)).mkdir()
    (cache / "stray").write_text("x")
    (folders[1] / "tiny.py").chmod(0o644)
    (folders[1] / "tiny.py").write_text("")
    again = await started(cache)
    assert {path.name for path in cache.iterdir()} == {"stray", *(folder.parent.name for folder in folders)}
    assert await again.find(environment_of(wheels[0])) == folders[0]
    assert await again.find(environment_of(wheels[1])) is None
    assert not folders[1].exists()
    assert run_isolated(await built(again, wheels[1]), "import tiny; print(tiny.version)") == "1.0"


async def test_a_folder_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        await started(tmp_path / "file" / "cache")


async def test_one_lock_is_one_folder_and_any_other_lock_is_another(tmp_path: Path) -> None:
    environments = await started(tmp_path / "cache")
    toy, tiny = make_wheel(tmp_path, "toy"), make_wheel(tmp_path, "tiny")
    assert environments.key(environment_of(toy)) == environments.key(environment_of(toy, requires_python=">=3"))
    assert environments.key(environment_of(toy)) != environments.key(environment_of(tiny))
    forged = make_wheel(tmp_path / "evil", "toy", files={"evil.py": ""})
    assert environments.key(environment_of(toy)) != environments.key(environment_of(toy, pins=[pin_of(toy, forged)]))


# -- uv --------------------------------------------------------------------------------------


@pytest.fixture
def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fake-uv"
    monkeypatch.setattr(uv, "find_uv", lambda: str(path))
    return path


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


async def test_uv_that_hangs_is_ended_with_its_children(tmp_path: Path, fake_uv: Path) -> None:
    write_program(fake_uv, f"echo $$ > {tmp_path}/pid; sleep 600 & echo $! >> {tmp_path}/pid; wait")
    with pytest.raises(TryAgainError) as caught:
        await uv.run_uv(["x"], folder=tmp_path, environment={"PATH": os.defpath}, timeout_s=0.5)
    assert caught.value.reason == Reason.TIMEOUT
    assert_gone(tmp_path / "pid")


async def test_a_build_that_is_cancelled_leaves_no_process_and_no_folder(tmp_path: Path, fake_uv: Path) -> None:
    os.mkfifo(tmp_path / "started")
    write_program(fake_uv, f"echo $$ > {tmp_path}/pid; sleep 600 & echo $! >> {tmp_path}/pid; echo x > {tmp_path}/started; wait")
    environments = await started(tmp_path / "cache")
    task = asyncio.create_task(built(environments, make_wheel(tmp_path)))
    await asyncio.wait_for(asyncio.to_thread((tmp_path / "started").read_text), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_gone(tmp_path / "pid")
    assert list((tmp_path / "cache").iterdir()) == []


def assert_gone(pids: Path) -> None:
    """All of these were killed; those that are not ours to reap may take a moment to go."""
    deadline = time.monotonic() + 5
    for number in map(int, pids.read_text().split()):
        while runs(number):
            assert time.monotonic() < deadline, f"{number} still runs"
            os.sched_yield()


def runs(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def test_uv_that_talks_without_end_is_read_and_forgotten(tmp_path: Path, fake_uv: Path) -> None:
    write_program(fake_uv, "head -c 3000000 /dev/zero; exit 3")
    ran = await uv.run_uv(["x"], folder=tmp_path, environment={"PATH": os.defpath}, timeout_s=10)
    assert ran.code == 3
    assert len(ran.output) == uv.OUTPUT_BYTES_MAX


async def test_without_uv_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        uv.find_uv()
    assert "pip install uv" in caught.value.hint


# -- the owner's own index -------------------------------------------------------------------


async def test_a_missing_wheel_comes_from_the_owners_index_only_when_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    wheel = make_wheel(tmp_path / "made")
    with index_of(tmp_path / "index") as index:
        index.add("toy", wheel)
        environment = environment_of(wheel)
        offline = await started(tmp_path / "offline", EnvironmentPolicy(index=index.address))
        assert (await refusal(offline, environment=environment)).reason == Reason.NO_WHEEL
        assert index.asked == []
        online = await started(tmp_path / "online", EnvironmentPolicy(online=True, index=index.address))
        assert online.wanted(environment)
        folder = await online.build(environment, {})
        assert run_isolated(folder, "import toy; print(toy.version)") == "1.0"
        forged = make_wheel(tmp_path / "forged", files={"evil.py": ""})
        index.add("toy", forged)
        other = await started(tmp_path / "other", EnvironmentPolicy(online=True, index=index.address))
        assert (await refusal(other, environment=environment)).reason == Reason.NO_WHEEL


def test_what_is_known_of_machines_elsewhere() -> None:
    there = interpreter_of(Target("linux-aarch64", "3.13"))
    assert there is not None
    assert "cp313-cp313-manylinux_2_28_aarch64" in there.tags
    assert "cp312-abi3-manylinux2014_aarch64" in there.tags
    assert "py3-none-any" in there.tags
    assert not [tag for tag in there.tags if "x86_64" in tag or "cp314" in tag]
    assert there.tags.index("cp313-cp313-manylinux_2_17_aarch64") < there.tags.index("cp313-cp313-manylinux_2_28_aarch64")
    assert there.allows(">=3.13.2")
    assert not there.allows("<3.13")
    for odd in (
        Target("plan9-mips", "3.12"),
        Target("linux-x86_64", "2.7"),
        Target("linux-", "3.12"),
        Target("linux-../x", "3.12"),
        Target("", ""),
    ):
        assert interpreter_of(odd) is None
