"""What every implementation of the storage primitives must do: the real one and the modelled."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from node.disk.files import Files, Piece
from node.disk.os_files import OsFiles
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.replica_store import StorageFailed
from vmreplica.testing.memory_disk import MemoryDisk
from vmreplica.testing.memory_files import Faults, HostKilled, LinkFault, MemoryFiles


@pytest.fixture(params=["os", "os inline", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Files, str]:
    if request.param == "memory":
        disk = MemoryDisk()
        disk.make_location("/store")
        return MemoryFiles(disk, "a"), "/store"
    return OsFiles([str(tmp_path)], inline=request.param == "os inline"), str(tmp_path)


Place = tuple[Files, str]


async def test_what_is_written_is_read(place: Place) -> None:
    files, root = place
    file = await files.create(f"{root}/a")
    await file.pwrite([Piece(0, b"one"), Piece(3, memoryview(b"two")), Piece(100_000, b"end")])
    await file.pwrite([])
    assert await file.length() == 100_003
    assert await file.pread(6, 0) == b"onetwo"
    assert await file.pread(10, 99_998) == b"\0\0end"
    assert await file.pread(10, 200_000) == b""
    await file.truncate(4)
    await file.truncate(8)
    await file.fdatasync()
    await file.close()
    await file.close()
    assert await files.read(f"{root}/a") == b"onet\0\0\0\0"


async def test_many_small_pieces_go_down_in_order(place: Place) -> None:
    files, root = place
    file = await files.create(f"{root}/a")
    pieces = [Piece(i * 3, i.to_bytes(3, "big")) for i in range(2_000)]
    await file.pwrite([*pieces, Piece(0, b"new")])
    await file.close()
    data = await files.read(f"{root}/a")
    assert data == b"new" + b"".join(bytes(p.data) for p in pieces[1:])


async def test_create_never_replaces(place: Place) -> None:
    files, root = place
    await files.write_new(f"{root}/a", b"x")
    with pytest.raises(StorageFailed):
        await files.create(f"{root}/a")
    with pytest.raises(StorageFailed):
        await files.write_new(f"{root}/a", b"y")
    assert await files.read(f"{root}/a") == b"x"


async def test_missing_things(place: Place) -> None:
    files, root = place
    with pytest.raises(FileNotFoundError):
        await files.open(f"{root}/no")
    with pytest.raises(FileNotFoundError):
        await files.read(f"{root}/no")
    with pytest.raises(FileNotFoundError):
        await files.list_directory(f"{root}/no")
    assert await files.unlink(f"{root}/no") is False
    assert await files.remove_directory(f"{root}/no") is False
    for act in (
        files.create(f"{root}/no/a"),
        files.write_new(f"{root}/no/a", b""),
        files.make_directory(f"{root}/no/a"),
        files.link(f"{root}/no", f"{root}/a"),
        files.link_count(f"{root}/no"),
        files.rename(f"{root}/no", f"{root}/a"),
        files.set_read_only(f"{root}/no"),
        files.sync_directory(f"{root}/no"),
    ):
        with pytest.raises(StorageFailed):
            await act


async def test_link_is_refused_where_a_name_is(place: Place) -> None:
    files, root = place
    await files.write_new(f"{root}/a", b"a")
    await files.write_new(f"{root}/b", b"b")
    await files.link(f"{root}/a", f"{root}/n")
    assert await files.link_count(f"{root}/a") == 2
    with pytest.raises(FileExistsError):
        await files.link(f"{root}/b", f"{root}/n")
    assert await files.link_count(f"{root}/b") == 1
    assert await files.read(f"{root}/n") == b"a"
    assert await files.unlink(f"{root}/a") is True
    assert await files.link_count(f"{root}/n") == 1


async def test_directories(place: Place) -> None:
    files, root = place
    assert await files.make_directory(f"{root}/d") is True
    assert await files.make_directory(f"{root}/d") is False
    await files.write_new(f"{root}/d/a", b"a")
    assert await files.remove_directory(f"{root}/d") is False
    await files.rename(f"{root}/d/a", f"{root}/b")
    await files.sync_directory(f"{root}/d")
    await files.sync_directory(root)
    assert sorted(await files.list_directory(root)) == ["b", "d"]
    assert await files.list_directory(f"{root}/d") == []
    assert await files.remove_directory(f"{root}/d") is True
    with pytest.raises(NotADirectoryError):
        await files.list_directory(f"{root}/b")
    with pytest.raises(StorageFailed):
        await files.make_directory(f"{root}/b")


async def test_a_read_only_file_stays_readable(place: Place) -> None:
    files, root = place
    await files.write_new(f"{root}/a", b"a")
    await files.set_read_only(f"{root}/a")
    assert await files.read(f"{root}/a") == b"a"
    file = await files.open(f"{root}/a")
    with pytest.raises(StorageFailed):
        await file.pwrite([Piece(0, b"x")])
    await file.close()


async def test_locks_are_kept_between_open_files(place: Place) -> None:
    files, root = place
    await files.write_new(f"{root}/a", bytes(10))
    one = await files.open(f"{root}/a", write=True)
    two = await files.open(f"{root}/a", write=True)
    assert await one.try_lock(0, 4) is True
    assert await one.try_lock(0, 4) is True
    assert await two.try_lock(3, 2) is False
    assert await two.try_lock(4, 2) is True
    await one.close()
    assert await two.try_lock(0, 4) is True
    await two.close()


async def test_space_and_offload(place: Place) -> None:
    files, root = place
    space = await files.space(root)
    assert 0 < space.free_bytes <= space.total_bytes
    assert await files.offload(pow, 2, 10) == 1_024


# ---- the real file system only ----


async def test_paths_outside_and_through_links_are_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("s")
    (inside / "link").symlink_to(outside)
    (inside / "file").symlink_to(outside / "secret")
    files = OsFiles([str(inside)])
    acts: list[Callable[[], object]] = [
        lambda: files.read(str(outside / "secret")),
        lambda: files.read(f"{inside}/../out/secret"),
        lambda: files.read(f"{inside}/link/secret"),
        lambda: files.read(f"{inside}/file"),
        lambda: files.create(f"{inside}/link/new"),
        lambda: files.list_directory(f"{inside}/link"),
        lambda: files.make_directory(f"{inside}/link"),
        lambda: files.unlink(f"{inside}/link/secret"),
        lambda: files.set_read_only(f"{inside}/file"),
        lambda: files.read(f"{inside}//file"),
        lambda: files.read(f"{inside}/./file"),
    ]
    for act in acts:
        with pytest.raises(Problem) as caught:
            await act()  # type: ignore[misc]
        assert caught.value.reason is Reason.BAD_FIELD
    assert sorted(os.listdir(outside)) == ["secret"]


async def test_modes(tmp_path: Path) -> None:
    files = OsFiles([str(tmp_path)])
    await files.make_directory(f"{tmp_path}/d")
    await files.write_new(f"{tmp_path}/d/a", b"")
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "d/a").stat().st_mode & 0o777 == 0o600
    await files.set_read_only(f"{tmp_path}/d/a")
    assert (tmp_path / "d/a").stat().st_mode & 0o777 == 0o444


async def test_a_full_disk_is_told_apart() -> None:
    files = OsFiles(["/dev"], inline=True)
    file = await files.open("/dev/full", write=True)
    with pytest.raises(StorageFailed) as caught:
        await file.pwrite([Piece(0, b"x")])
    assert caught.value.no_space
    await file.close()


# ---- what only the modelled disk does ----


def shared() -> tuple[MemoryDisk, MemoryFiles, MemoryFiles]:
    disk = MemoryDisk()
    disk.make_location("/store")
    return disk, MemoryFiles(disk, "a"), MemoryFiles(disk, "b")


async def test_a_crash_loses_what_was_not_synced() -> None:
    disk, a, b = shared()
    file = await a.create("/store/x")
    await file.pwrite([Piece(0, b"old")])
    await file.fdatasync()
    await file.pwrite([Piece(0, b"new")])
    assert await a.read("/store/x") == b"new"
    assert await b.read("/store/x") == b"old"
    disk.crash("a")
    assert await b.read("/store/x") == b"old"


async def test_a_power_cut_loses_names_and_data_that_were_not_synced() -> None:
    disk, a, b = shared()
    await a.write_new("/store/kept", b"k")
    await a.sync_directory("/store")
    await a.write_new("/store/lost", b"l")
    file = await a.open("/store/kept", write=True)
    await file.pwrite([Piece(0, b"K")])
    await file.close()
    assert await b.read("/store/kept") == b"K"
    await a.unlink("/store/kept")
    disk.power_cut()
    assert await b.list_directory("/store") == ["kept"]
    assert await b.read("/store/kept") == b"k"


async def test_listings_lag_behind_for_others_but_never_behind_ones_own() -> None:
    now = [0.0]
    disk = MemoryDisk(now_ms=lambda: now[0], listing_lag_ms=100, pick=lambda count: count - 1)
    disk.make_location("/store")
    a, b = MemoryFiles(disk, "a"), MemoryFiles(disk, "b")
    await a.write_new("/store/1", b"")
    now[0] = 1_000
    await a.write_new("/store/2", b"")
    assert sorted(await a.list_directory("/store")) == ["1", "2"]
    assert await b.list_directory("/store") == ["1"]
    await b.write_new("/store/3", b"")
    assert sorted(await b.list_directory("/store")) == ["1", "2", "3"]
    assert sorted(await a.list_directory("/store")) == ["1", "2"]
    now[0] = 1_101
    assert sorted(await a.list_directory("/store")) == ["1", "2", "3"]


async def test_link_faults() -> None:
    disk, a, b = shared()
    a.faults.links = [LinkFault.TWICE, LinkFault.LOST_ANSWER, LinkFault.DELAYED, LinkFault.DELAYED]
    for name in "1234":
        await a.write_new(f"/store/t{name}", name.encode())
    with pytest.raises(FileExistsError):
        await a.link("/store/t1", "/store/n1")
    assert await a.link_count("/store/t1") == 2
    with pytest.raises(StorageFailed):
        await a.link("/store/t2", "/store/n2")
    assert await b.read("/store/n2") == b"2"
    for name in "34":
        with pytest.raises(StorageFailed):
            await a.link(f"/store/t{name}", f"/store/n{name}")
    await b.link("/store/t1", "/store/n4")
    disk.deliver_delayed()
    assert await b.read("/store/n3") == b"3"
    assert await b.read("/store/n4") == b"1"


async def test_faults_come_at_their_step() -> None:
    disk = MemoryDisk()
    disk.make_location("/store")
    files = MemoryFiles(disk, "a", faults=Faults(fail_at={2: errno.ENOSPC}, kill_at=3))
    file = await files.create("/store/x")
    with pytest.raises(StorageFailed) as caught:
        await file.pwrite([Piece(0, b"x")])
    assert caught.value.no_space
    with pytest.raises(HostKilled):
        await file.fdatasync()
    assert [step.operation for step in files.journal] == ["create", "write", "fdatasync"]
