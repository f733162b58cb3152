"""WASI preview 1, the calls about descriptors and paths. Each takes the unit's world and the numbers of the call, all unsigned.

They raise Refused with an error number, which the unit gets, or return nothing, which it gets as success.
"""

from __future__ import annotations

import struct

from .tree import ACCES, EXIST, INVAL, ISDIR, NAMETOOLONG, NOENT, NOTDIR, PATH_BYTES_MAX, File, Folder, Node, Refused
from .world import BADF, EPOCH_NS, Descriptor, World

NOTSUP, NOTCAPABLE, SPIPE, FBIG = 58, 76, 70, 22
TYPE_UNKNOWN, TYPE_FOLDER, TYPE_FILE = 0, 3, 4
_RIGHT_READ, _RIGHT_SEEK, _RIGHT_TELL, _RIGHT_WRITE = 1 << 1, 1 << 2, 1 << 5, 1 << 6
_RIGHTS_ALL = (1 << 30) - 1
_CREATE, _FOLDER_ONLY, _EXCLUSIVE, _TRUNCATE = 1, 2, 4, 8
_FLAG_APPEND = 1
_NUMBER_MAX = (1 << 63) - 1
_FDSTAT = struct.Struct("<BxHxxxxQQ")
_FILESTAT = struct.Struct("<QQBxxxxxxxQQQQQ")
_ENTRY = struct.Struct("<QQIBxxx")
ROOT_NAME = b"/"
"""The name of the one folder that is open from the start."""


def fd_advise(world: World, number: int, offset: int, size: int, advice: int) -> None:
    """Taken note of, that is all."""
    world.descriptor(number)


def fd_allocate(world: World, number: int, offset: int, size: int) -> None:
    """A file at least as long as this."""
    file, _ = _written(world, number)
    if offset + size > _NUMBER_MAX:
        raise Refused(FBIG)
    world.tree.resize(file, max(file.size_bytes, offset + size))


def fd_close(world: World, number: int) -> None:
    """The number is free again."""
    world.descriptor(number)
    del world.descriptors[number]


def fd_sync(world: World, number: int) -> None:
    """Nothing waits to be written."""
    world.descriptor(number)


def fd_fdstat_get(world: World, number: int, result: int) -> None:
    """What kind of thing it is. Rights are not told apart: what cannot be done fails when it is tried."""
    descriptor = world.descriptor(number)
    rights = _RIGHTS_ALL
    if not isinstance(descriptor.node, Folder):
        rights &= ~((0 if descriptor.readable else _RIGHT_READ) | (0 if descriptor.writable else _RIGHT_WRITE))
    if descriptor.node is None:
        rights &= ~(_RIGHT_SEEK | _RIGHT_TELL)
    world.write(result, _FDSTAT.pack(_kind(descriptor.node), _FLAG_APPEND if descriptor.appends else 0, rights, _RIGHTS_ALL))


def fd_fdstat_set_flags(world: World, number: int, flags: int) -> None:
    """Only appending means anything here."""
    world.descriptor(number).appends = bool(flags & _FLAG_APPEND)


def fd_filestat_get(world: World, number: int, result: int) -> None:
    """Size and kind."""
    descriptor = world.descriptor(number)
    world.write(result, _filestat(descriptor.node))


def fd_filestat_set_size(world: World, number: int, size: int) -> None:
    """Cut off, or filled with zeros."""
    file, _ = _written(world, number)
    world.tree.resize(file, size)


def fd_pread(world: World, number: int, vectors: int, count: int, offset: int, result: int) -> None:
    """Read at a place."""
    descriptor = world.descriptor(number)
    if descriptor.node is None:
        raise Refused(SPIPE)
    _read(world, descriptor, vectors, count, offset, result)


def fd_read(world: World, number: int, vectors: int, count: int, result: int) -> None:
    """Read on."""
    descriptor = world.descriptor(number)
    descriptor.position += _read(world, descriptor, vectors, count, descriptor.position, result)


def fd_pwrite(world: World, number: int, vectors: int, count: int, offset: int, result: int) -> None:
    """Write at a place."""
    if world.descriptor(number).node is None:
        raise Refused(SPIPE)
    file, _ = _written(world, number)
    _write(world, file, world.vectors(vectors, count), offset, result)


def fd_write(world: World, number: int, vectors: int, count: int, result: int) -> None:
    """Write on; to the streams, print."""
    descriptor = world.descriptor(number)
    if descriptor.node is None and descriptor.writable:
        parts = world.vectors(vectors, count)
        total = sum(size for _, size in parts)
        world.check(result, 4)
        world.pay_for(total)
        world.print(descriptor.stream, parts)
        world.write_u32(result, total)
        return
    file, descriptor = _written(world, number)
    start = file.size_bytes if descriptor.appends else descriptor.position
    descriptor.position = start + _write(world, file, world.vectors(vectors, count), start, result)


def fd_prestat_get(world: World, number: int, result: int) -> None:
    """Which folder is open from the start."""
    if not world.descriptor(number).preopened:
        raise Refused(BADF)
    world.write(result, bytes(4) + len(ROOT_NAME).to_bytes(4, "little"))


def fd_prestat_dir_name(world: World, number: int, address: int, size: int) -> None:
    """Its name."""
    if not world.descriptor(number).preopened:
        raise Refused(BADF)
    if size < len(ROOT_NAME):
        raise Refused(NAMETOOLONG)
    world.write(address, ROOT_NAME)


def fd_readdir(world: World, number: int, address: int, size: int, cookie: int, result: int) -> None:
    """As many entries as fit, the last one cut off; a cookie is the position of the next entry."""
    folder = _folder(world, number)
    data = bytearray()
    for position, (name, node) in enumerate(folder.listing()):
        if position < cookie:
            continue
        data += _ENTRY.pack(position + 1, node.inode, len(name), _kind(node)) + name
        if len(data) >= size:
            break
    world.check(result, 4)
    world.pay_for(len(data) + 64 * len(folder.entries))
    world.write(address, bytes(data[:size]))
    world.write_u32(result, min(len(data), size))


def fd_renumber(world: World, source: int, target: int) -> None:
    """Another number for a descriptor, in place of what has it."""
    descriptor = world.descriptor(source)
    world.descriptor(target)
    del world.descriptors[source]
    world.descriptors[target] = descriptor


def fd_seek(world: World, number: int, offset: int, whence: int, result: int) -> None:
    """Move to a place."""
    descriptor = _seekable(world, number)
    offset -= (offset >> 63) << 64
    bases = {0: 0, 1: descriptor.position, 2: world.size_bytes(descriptor)}
    if whence not in bases or not 0 <= bases[whence] + offset <= _NUMBER_MAX:
        raise Refused(INVAL)
    world.write_u64(result, bases[whence] + offset)
    descriptor.position = bases[whence] + offset


def fd_tell(world: World, number: int, result: int) -> None:
    """Where it stands."""
    world.write_u64(result, _seekable(world, number).position)


def path_create_directory(world: World, number: int, address: int, size: int) -> None:
    """A folder in the unit's scratch space."""
    world.tree.make_folder(*_target(world, number, address, size))


def path_filestat_get(world: World, number: int, flags: int, address: int, size: int, result: int) -> None:
    """Size and kind of what lies there."""
    node = world.tree.find(_folder(world, number), _path(world, address, size))
    world.write(result, _filestat(node))


def path_open(
    world: World, number: int, look: int, address: int, size: int, how: int, rights: int, inheriting: int, flags: int, result: int
) -> None:
    """Open what lies there, or make it. Input files cannot be opened for writing."""
    base, path = _folder(world, number), _path(world, address, size)
    world.check(result, 4)
    descriptor = Descriptor(
        None, readable=bool(rights & _RIGHT_READ), writable=bool(rights & _RIGHT_WRITE), appends=bool(flags & _FLAG_APPEND)
    )
    folder, name = world.tree.parent_of(base, path)
    node = folder.entries.get(name) if name else folder
    if node is None:
        if not how & _CREATE:
            raise Refused(NOENT)
        if how & _FOLDER_ONLY or path.endswith(b"/"):
            raise Refused(INVAL)
        node = world.tree.create(folder, name)
    else:
        _check_open(node, path, how, descriptor)
    if how & _TRUNCATE and isinstance(node, File):
        world.tree.resize(node, 0)
    descriptor.node = node
    world.write_u32(result, world.open(descriptor))


def path_remove_directory(world: World, number: int, address: int, size: int) -> None:
    """Remove an empty folder."""
    world.tree.remove(*_target(world, number, address, size), is_folder=True)


def path_unlink_file(world: World, number: int, address: int, size: int) -> None:
    """Remove a file."""
    world.tree.remove(*_target(world, number, address, size), is_folder=False)


def path_rename(world: World, number: int, address: int, size: int, to_number: int, to_address: int, to_size: int) -> None:
    """Give a file or folder another place."""
    world.tree.rename(_target(world, number, address, size), _target(world, to_number, to_address, to_size))


def path_readlink(world: World, number: int, address: int, size: int, buffer: int, buffer_size: int, result: int) -> None:
    """There are no links."""
    world.tree.find(_folder(world, number), _path(world, address, size))
    raise Refused(INVAL)


def _kind(node: Node | None) -> int:
    if node is None:
        return TYPE_UNKNOWN
    return TYPE_FOLDER if isinstance(node, Folder) else TYPE_FILE


def _filestat(node: Node | None) -> bytes:
    size_bytes = node.size_bytes if isinstance(node, File) else 0
    return _FILESTAT.pack(1, node.inode if node is not None else 0, _kind(node), 1, size_bytes, EPOCH_NS, EPOCH_NS, EPOCH_NS)


def _folder(world: World, number: int) -> Folder:
    node = world.descriptor(number).node
    if not isinstance(node, Folder):
        raise Refused(NOTDIR)
    return node


def _path(world: World, address: int, size: int) -> bytes:
    if size > PATH_BYTES_MAX:
        raise Refused(NAMETOOLONG)
    return world.read(address, size)


def _target(world: World, number: int, address: int, size: int) -> tuple[Folder, bytes]:
    return world.tree.parent_of(_folder(world, number), _path(world, address, size))


def _seekable(world: World, number: int) -> Descriptor:
    descriptor = world.descriptor(number)
    if descriptor.node is None:
        raise Refused(SPIPE)
    return descriptor


def _written(world: World, number: int) -> tuple[File, Descriptor]:
    """The file behind a number that was opened for writing."""
    descriptor = world.descriptor(number)
    if isinstance(descriptor.node, Folder):
        raise Refused(ISDIR)
    if not descriptor.writable or descriptor.node is None:
        raise Refused(NOTCAPABLE if descriptor.node is not None else BADF)
    return descriptor.node, descriptor


def _check_open(node: Node, path: bytes, how: int, descriptor: Descriptor) -> None:
    if how & _CREATE and how & _EXCLUSIVE:
        raise Refused(EXIST)
    if isinstance(node, Folder):
        if descriptor.writable and not how & _FOLDER_ONLY and how & (_CREATE | _TRUNCATE):
            raise Refused(ISDIR)
        return
    if how & _FOLDER_ONLY or path.endswith(b"/"):
        raise Refused(NOTDIR)
    if node.written is None and (descriptor.writable or how & _TRUNCATE):
        raise Refused(ACCES)


def _read(world: World, descriptor: Descriptor, vectors: int, count: int, start: int, result: int) -> int:
    if isinstance(descriptor.node, Folder):
        raise Refused(ISDIR)
    if not descriptor.readable:
        raise Refused(NOTCAPABLE if descriptor.node is not None else BADF)
    parts = world.vectors(vectors, count)
    world.check(result, 4)
    world.pay_for(min(sum(size for _, size in parts), max(0, world.size_bytes(descriptor) - start)))
    total = world.scatter(descriptor, parts, start)
    world.write_u32(result, total)
    return total


def _write(world: World, file: File, vectors: list[tuple[int, int]], start: int, result: int) -> int:
    total = sum(size for _, size in vectors)
    world.check(result, 4)
    if start + total > _NUMBER_MAX:
        raise Refused(FBIG)
    world.pay_for(total)
    if total:
        world.tree.write(file, start, world.parts(vectors), total)
    world.write_u32(result, total)
    return total
