"""Files that units read, leave behind and return."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from p2pgrid.model.ids import BlobId
from p2pgrid.model.values import EXT_FILE, FileRef, encode_value
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes.tasks import BatchTask, Code, JobKey, Outcome
from p2pgrid.runtimes.worker.files import blob_id_of

KEY = JobKey(b"submitter", b"job")


def returned(ended: Any, position: int) -> FileRef:
    """The reference that a unit returned."""
    value = ended.values[position]
    assert isinstance(value, FileRef)
    return value


@pytest.mark.parametrize("size_bytes", [0, 5, 1 << 20, (1 << 20) + 1, 3 << 20])
async def test_a_returned_path_becomes_a_file_with_its_blob_id(run_units: Any, size_bytes: int) -> None:
    source = "from pathlib import Path\ndef work(x):\n    p = Path('out.bin'); p.write_bytes(b'z' * x)\n    return p\n"
    ended = await run_units(source, [size_bytes], first=9)
    reference = returned(ended, 0)
    assert (reference.name, reference.size_bytes) == ("out.bin", size_bytes)
    (file,) = ended.chunks[0].files
    assert (file.index, file.blob, file.size_bytes) == (9, reference.blob, size_bytes)
    assert file.path.read_bytes() == b"z" * size_bytes
    with file.path.open("rb") as opened:
        assert blob_id_of(opened.fileno(), size_bytes) == reference.blob


def test_blob_ids_follow_the_published_rule(tmp_path: Path) -> None:
    small, large = b"small", os.urandom((2 << 20) + 17)
    digests = b"".join(blake3(large[start : start + (1 << 20)]).digest() for start in range(0, len(large), 1 << 20))
    root = msgspec.msgpack.encode([len(large), 1 << 20, digests])
    expected = {small: blake3(small).digest(), large: blake3(root, derive_key_context="p2pgrid/1/blob-root").digest()}
    for content, blob in expected.items():
        path = tmp_path / "file"
        path.write_bytes(content)
        with path.open("rb") as opened:
            assert blob_id_of(opened.fileno(), len(content)) == blob


async def test_several_files_and_folders_of_a_unit_can_be_returned(run_units: Any) -> None:
    source = (
        "from pathlib import Path\ndef work(x):\n    Path('deep/er').mkdir(parents=True)\n"
        "    a, b = Path('deep/er/a.txt'), Path('b.txt').absolute()\n    a.write_text('a' * x); b.write_text('bb')\n"
        "    return {'a': a, 'b': [b]}\n"
    )
    ended = await run_units(source, [1, 2])
    assert ended.outcomes == [Outcome.OK] * 2
    assert [file.index for chunk in ended.chunks for file in chunk.files] == [0, 0, 1, 1]
    assert ended.values[1]["a"].name == "a.txt"


@pytest.mark.parametrize(
    ("making", "said"),
    [
        ("p = Path('/etc/passwd')", "outside"),
        ("p = Path('../x'); p.write_text('x')", "outside"),
        ("p.symlink_to('/etc/passwd')", "cannot be read"),
        ("os.symlink('/etc', 'd'); p = Path('d/passwd')", "outside"),
        ("os.mkfifo(p)", "regular"),
        ("p.mkdir()", "regular"),
        ("Path('q').write_text('x'); os.link('q', p)", "more than one name"),
        ("open(p, 'w').truncate(1 << 29)", "more than the"),
        ("p = Path('missing')", "cannot be read"),
    ],
)
async def test_odd_outputs_are_refused_with_a_reason(tmp_path: Path, making: str, said: str) -> None:
    from p2pgrid.model.values import decode_value
    from p2pgrid.runtimes.pool import WorkerPool
    from p2pgrid.runtimes.tasks import BatchChunk, PoolPolicy

    pool = WorkerPool(tmp_path / "pool", PoolPolicy(file_bytes_max=1 << 20, cage="bare", spare_s=0), InlineOffload())
    if "truncate" in making:
        making = making.replace("1 << 29", "(1 << 20) + 1")
        said = "too large"
    await pool.start()
    chunks: list[BatchChunk] = []
    source = f"import os\nfrom pathlib import Path\ndef work(x):\n    p = Path('out')\n    {making}\n    return p\n"
    await pool.run(BatchTask(job=KEY, code=Code(source=source), inputs=b"\x91\x00"), chunks.append)
    await pool.close()
    assert chunks[0].outcomes[0] in (Outcome.UNENCODABLE, Outcome.RAISED)
    assert said in decode_value(chunks[0].payloads[0])["message"].lower()
    assert chunks[0].files == []


async def test_what_a_unit_leaves_is_gone_for_the_next(run_units: Any) -> None:
    source = (
        "import os\ndef work(x):\n    found = sorted(os.listdir('.'))\n    os.makedirs(f'd{x}/e'); open(f'd{x}/e/f', 'w').close()\n"
        "    os.symlink('/etc', 'link'); os.chmod(f'd{x}', 0)\n    os.chdir('/')\n    return found\n"
    )
    ended = await run_units(source, list(range(50)))
    assert ended.values == [[]] * 50
    assert Path("/etc/passwd").exists()


async def test_a_file_input_arrives_as_a_path_and_may_be_returned(run_units: Any, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    stored.write_bytes(b"content")
    reference = FileRef(BlobId(b"b" * 32), 7, "data.txt")
    item = msgspec.msgpack.Ext(EXT_FILE, msgspec.msgpack.encode(reference))
    source = "def work(x):\n    p = x['file']\n    return [type(p).__name__, p.read_text(), p]\n"
    ended = await run_units(source, [{"file": item}], files={reference.blob: stored})
    assert ended.values == [["PosixPath", "content", reference]]
    assert ended.chunks[0].files == []


async def test_a_file_that_was_not_brought_fails_its_unit_alone(run_units: Any) -> None:
    reference = FileRef(BlobId(b"b" * 32), 7, "data.txt")
    item = msgspec.msgpack.Ext(EXT_FILE, msgspec.msgpack.encode(reference))
    ended = await run_units("def work(x): return 1", [0, item, 0])
    assert ended.outcomes == [Outcome.OK, Outcome.RAISED, Outcome.OK]
    assert "data.txt" in ended.values[1]["message"]


async def test_files_of_a_result_that_is_not_sent_are_dropped(run_units: Any, tmp_path: Path) -> None:
    source = "from pathlib import Path\ndef work(x):\n    p = Path('o'); p.write_text('x')\n    return [p, object()]\n"
    ended = await run_units(source, [1])
    assert ended.outcomes == [Outcome.UNENCODABLE]
    assert ended.chunks[0].files == []
    assert list((tmp_path / "pool" / "processes").glob("*/outbox/*")) == []


def test_a_path_is_refused_where_files_cannot_be_taken() -> None:
    from p2pgrid.errors import BadDataError

    with pytest.raises(BadDataError, match="files cannot be sent"):
        encode_value([Path("x")])
