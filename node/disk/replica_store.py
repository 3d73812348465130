"""All storage locations of one node: implements ports.replica_store.ReplicaStore."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from node.disk.files import Files
from node.disk.merge import InlineMerger, Merger
from node.disk.names import plain
from node.disk.replica_folder import DiskReplicaFolder
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.randomness import Randomness
from vmreplica.ports.replica_store import FolderMissing, Space


class DiskReplicaStore:
    """Opens replicas' directories below the configured storage locations.

    :param merger: who carries out merges; this process itself by default.
    :param verify_before_ack: whether frames are decompressed before they are taken in.
    """

    def __init__(
        self,
        files: Files,
        locations: Sequence[str],
        randomness: Randomness,
        *,
        merger: Merger | None = None,
        verify_before_ack: Callable[[], bool] = lambda: False,
    ) -> None:
        self._files = files
        self._locations = tuple(location.rstrip("/") for location in locations)
        self._randomness = randomness
        self._merger = merger or InlineMerger(files)
        self._verify_before_ack = verify_before_ack
        self._clones: dict[str, bool] = {}

    def clones(self, location: str) -> bool:
        """Whether files share blocks at this location; known once a directory there is open."""
        return self._clones.get(location.rstrip("/"), False)

    async def open_folder(self, folder_path: str, *, create: bool) -> DiskReplicaFolder:
        """One replica's directory; see the port.

        :raises FolderMissing: not there, and ``create`` is false.
        """
        path = self._inside(folder_path)
        location = path.rpartition("/")[0]
        if location not in self._clones:
            self._clones[location] = await self._files.can_clone(location)
        folder = DiskReplicaFolder(
            self._files, path, self._randomness, self._merger, self._verify_before_ack
        )
        if create:
            await self._files.make_directory(path)
            await folder.prepare()
            await self._files.sync_directory(location)
        else:
            try:
                await self._files.list_directory(path)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise FolderMissing(f"{path} is missing") from error
        return folder

    async def space(self, location: str) -> Space:
        """statvfs of a storage location."""
        return await self._files.space(location)

    def _inside(self, folder_path: str) -> str:
        path = folder_path.rstrip("/")
        location, _, name = path.rpartition("/")
        if location not in self._locations:
            raise Problem(
                Reason.BAD_FIELD,
                "The replica's directory lies in none of this node's storage locations.",
                field="folder_path",
                value=folder_path,
                remedy="Configure its storage location on this node, or choose another node.",
            )
        plain("folder_path", name)
        return path
