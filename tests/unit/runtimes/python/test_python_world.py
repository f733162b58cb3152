"""What units find in their guest: a clock, chance, files, an environment; and that it is the same every time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from p2pgrid.model.values import FileRef
from p2pgrid.runtimes.worker import frames

SEED = bytes(range(32))
GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def native_draws(index: int) -> list[float]:
    generator = random.Random((int.from_bytes(SEED[:8], "big") ^ (index * GOLDEN)) & MASK)
    return [generator.random(), generator.random()]


@pytest.mark.parametrize("place", ["import random\ndef work(x):\n", "def work(x):\n    import random\n"])
def test_random_draws_what_it_draws_in_a_native_unit(guests: Any, place: str) -> None:
    ended = guests(place + "    return [random.random(), random.random()]").run([0] * 4, first=10)
    assert ended.values == [native_draws(index) for index in range(10, 14)]


def test_all_other_chance_depends_on_job_and_unit_alone(guests: Any) -> None:
    source = (
        "import os, random, secrets, uuid, statistics\ndef work(x):\n"
        "    return [os.urandom(8), secrets.token_hex(8), str(uuid.uuid4()), str(uuid.uuid1()), random.Random().random(),"
        " random.SystemRandom().random(), statistics.NormalDist().samples(2)]"
    )
    together = guests(source).run([0] * 30, first=5).values
    alone = [guests(source).run([0], first=index).values[0] for index in (5, 20)]
    assert [together[0], together[15]] == alone
    assert len({repr(value) for value in together}) == 30
    assert guests(source).run([0], first=5, seed=b"another job".ljust(32, b".")).values[0] != together[0]


def test_the_clock_starts_anew_for_each_unit_and_only_its_calls_move_it(guests: Any) -> None:
    source = (
        "import time, datetime\ndef work(x):\n"
        "    start = time.time()\n    time.sleep(3600)\n    passed = time.time() - start\n"
        "    return [start, round(passed, 3), str(datetime.datetime.now())[:16], str(datetime.date.today()), time.strftime('%Y-%m-%d'),"
        " time.monotonic() < 3601, time.localtime().tm_hour]"
    )
    ended = guests(source).run([0, 0])
    assert ended.values[0] == ended.values[1]
    assert ended.values[0] == [1577836800.000001, 3600.0, "2020-01-01 01:00", "2020-01-01", "2020-01-01", True, 1]


def test_the_environment_is_that_of_a_unit_and_tells_nothing(guests: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PGRID_TEST_SECRET", "do not tell")
    source = "import os, sys\ndef work(x): return [dict(os.environ), os.getcwd(), sys.argv, __name__, __file__, sys.version_info[:2]]"
    environment, folder, arguments, name, file, version = guests(source).run([0]).values[0]
    assert "P2PGRID_TEST_SECRET" not in environment
    assert environment["HOME"] == environment["TMPDIR"] == folder == "/unit"
    assert (arguments, name, file, version) == (["job"], "p2pgrid_job", "job.py", [3, 14])


def test_units_write_and_read_files_that_the_next_one_does_not_see(guests: Any) -> None:
    source = (
        "from pathlib import Path\nimport os, shutil, tempfile, zipfile\ndef work(x):\n"
        "    found = os.listdir('.')\n"
        "    folder = Path('a/b'); folder.mkdir(parents=True)\n"
        "    (folder / 'c.txt').write_text('héllo')\n"
        "    with tempfile.NamedTemporaryFile('w+') as file:\n"
        "        file.write('x' * 100_000); file.seek(0); size = len(file.read())\n"
        "    with zipfile.ZipFile('z.zip', 'w') as pack: pack.write('a/b/c.txt')\n"
        "    with zipfile.ZipFile('z.zip') as pack: text = pack.read('a/b/c.txt').decode()\n"
        "    shutil.copy('z.zip', 'y.zip'); os.rename('y.zip', 'x.zip'); os.remove('x.zip')\n"
        "    shutil.rmtree('a')\n"
        "    return [found, size, text, sorted(os.listdir('.')), Path('a').exists()]"
    )
    expected = [[], 100_000, "héllo", ["z.zip"], False]
    assert guests(source).run([0, 0, 0]).values == [expected] * 3


CONTENT = b"some content" * 100_000


@pytest.fixture
def file(tmp_path: Path) -> tuple[dict[bytes, str], Any]:
    place = tmp_path / "given"
    place.write_bytes(CONTENT)
    blob = b"\x11" * 32
    return {blob: str(place)}, lambda path: FileRef(blob, len(CONTENT), "my file.txt")  # type: ignore[arg-type]


def test_an_input_file_is_a_path_in_memory(guests: Any, file: Any) -> None:
    files, on_path = file
    source = (
        "def work(p):\n    with open(p, 'rb') as stream: head = stream.read(4)\n"
        "    return [p.name, p.stem, p.suffix, len(p.read_bytes()), p.read_text()[:4], head, p.is_file(), p.stat().st_size]"
    )
    for fresh in (False, True):
        ended = guests(source, fresh=fresh).run([Path("x"), Path("y")], files=files, on_path=on_path)
        assert ended.values == [["my file.txt", "my file", ".txt", len(CONTENT), "some", b"some", True, len(CONTENT)]] * 2


def test_an_input_that_is_returned_is_passed_back_and_cannot_be_changed(guests: Any, file: Any) -> None:
    files, on_path = file
    ended = guests("def work(p): return {'same': p}").run([Path("x")], files=files, on_path=on_path)
    assert ended.values == [{"same": on_path(None)}]
    assert ended.files == []
    ended = guests("def work(p): p.write_text('x')").run([Path("x")], files=files, on_path=on_path)
    assert ended.values[0]["type"] == "PermissionError"


def test_a_file_that_was_not_brought_along_fails_its_unit(guests: Any, file: Any) -> None:
    ended = guests("def work(p): return 1").run([Path("x")], files={}, on_path=file[1])
    assert ended.outcomes == [frames.RAISED]
    assert "was not brought along" in ended.values[0]["message"]


def test_returned_files_land_in_the_outbox_under_their_address(guests: Any) -> None:
    source = (
        "from pathlib import Path\ndef work(x):\n    Path('sub').mkdir()\n    first, second = Path('sub/one.bin'), Path('two.txt')\n"
        "    first.write_bytes(bytes(x)); second.write_text('é' * x)\n    return [first, x, {'b': second}]"
    )
    job = guests(source)
    ended = job.run([3, 70_000], first=100)
    assert ended.outcomes == [frames.OK] * 2
    assert [(index, size_bytes) for index, _, size_bytes, _ in ended.files] == [(100, 3), (100, 6), (101, 70_000), (101, 140_000)]
    for _, blob, size_bytes, name in ended.files:
        content = (job.outbox / name).read_bytes()
        assert len(content) == size_bytes
        assert blake3(content).digest() == blob
    first, size, rest = ended.values[1]
    assert (first.name, first.size_bytes, size, rest["b"].name) == ("one.bin", 70_000, 70_000, "two.txt")
    assert [first.blob, rest["b"].blob] == [blob for index, blob, _, _ in ended.files if index == 101]


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("Path('nothing')", "cannot be read"),
        ("Path('/etc/passwd')", "outside of the unit's folder"),
        ("Path('folder')", "not a regular file"),
        ("[Path('f'), Path('f')]", "cannot be read"),
    ],
)
def test_paths_that_cannot_be_taken_along_are_refused(guests: Any, expression: str, words: str) -> None:
    source = f"from pathlib import Path\ndef work(x):\n    Path('folder').mkdir(); Path('f').write_text('f')\n    return {expression}"
    ended = guests(source).run([0])
    assert ended.outcomes == [frames.UNENCODABLE]
    assert words in ended.values[0]["message"]
    assert ended.files == []


def test_asyncio_runs_on_the_virtual_clock(guests: Any) -> None:
    source = (
        "import asyncio, time\nasync def wait(s):\n    await asyncio.sleep(s)\n    return s\n"
        "async def main():\n    start = time.monotonic()\n    done = await asyncio.gather(wait(30), wait(600))\n"
        "    try: await asyncio.wait_for(asyncio.Event().wait(), 60)\n    except TimeoutError: done.append('late')\n"
        "    return done, round(time.monotonic() - start)\n"
        "def work(x): return asyncio.run(main())"
    )
    assert guests(source).run([0]).values == [[[30, 600, "late"], 660]]


def test_the_library_is_there(guests: Any) -> None:
    names = (
        "array base64 bisect collections csv dataclasses datetime decimal difflib enum fractions functools gzip hashlib heapq html.parser"
        " io ipaddress itertools json logging math operator pathlib pickle pprint queue random re sqlite3 statistics string struct tarfile"
        " textwrap tokenize tomllib typing unicodedata unittest urllib.parse uuid weakref xml.etree.ElementTree zipfile zlib zoneinfo"
    )
    source = "import importlib\ndef work(names): return [importlib.import_module(name).__name__ for name in names]"
    assert guests(source).run([names.split()]).values == [names.split()]
