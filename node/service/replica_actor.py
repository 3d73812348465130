"""One replica while this node owns it: takeover, then one queue for everything that commits.

data-safety §2: nothing is reported, accepted, compacted, deleted or started before the takeover
has committed a manifest under this epoch; every commit, pin and removal runs in this one task;
after an error at or behind the link the state is forgotten and taken over anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from node.service.replica_cycle import IncomingCycle
from node.service.replica_parts import ReplicaParts
from node.service.replica_records import ReplicaRecords
from node.service.replica_wait import within
from vmreplica.core import ownership
from vmreplica.core.manifest import Manifest
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.receiving_manifest import (
    first_manifest,
    next_manifest,
    policy_of,
    tombstoned,
    without_operation,
)
from vmreplica.core.records import ReplicaRecord
from vmreplica.core.replica_state import ReplicaPhase
from vmreplica.ports.cluster_store import OutcomeUnknown, StoreUnavailable
from vmreplica.ports.event_log import Severity
from vmreplica.ports.replica_store import (
    Deposed,
    FolderMissing,
    ManifestDamaged,
    NoManifest,
    NotOurs,
    ReplicaFolder,
    StorageFailed,
)

T = TypeVar("T")
_log = logging.getLogger(__name__)


class _ForeignFolder(ManifestDamaged):
    """The directory is another replica's."""


@dataclass(slots=True, eq=False)
class Session:
    """One takeover and what follows from it. ``manifest`` is the newest one committed by us."""

    epoch: int
    incarnation: str
    folder: ReplicaFolder
    manifest: Manifest
    incoming: IncomingCycle | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[Session], Awaitable[Any]]
    answer: asyncio.Future[Any]


class ReplicaActor:
    """The task of one owned replica under one epoch record (a raised epoch stays inside it)."""

    def __init__(
        self, parts: ReplicaParts, records: ReplicaRecords, record: ReplicaRecord, epoch: int
    ) -> None:
        self.parts = parts
        self.records = records
        self.replica_id = record.replica_id
        self.record = record
        self.epoch = epoch
        self.incarnation = parts.standing.incarnation
        self.phase = ReplicaPhase.TAKING_OVER
        self.session: Session | None = None
        self.last_problem = ""
        self.refusal: Problem | None = None
        """Answer to new cycles while the replica is given up; reads go on."""
        self.idle = asyncio.Event()
        """Set while no stream is open."""
        self.idle.set()
        self.cut_stream: Callable[[Problem], None] = _no_stream
        """Ends the open stream with this problem; the receiver sets it."""
        self.committed: Callable[[], None] = _nothing
        self.raising = False
        self.removal_begun = False
        self.nothing_left = False
        """Certain: the directory holds nothing of this replica, so that only records can go."""
        self._background: set[asyncio.Task[None]] = set()
        self._jobs: asyncio.Queue[_Job | None] = asyncio.Queue()
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()

    # -- for streams, API and verbs ------------------------------------------------------------

    async def serving(self, wait_ms: int) -> Session:
        """The session in force, waiting shortly for a takeover under way.

        :raises Problem: REPLICA_DAMAGED, or NODE_UNREACHABLE while it is not served.
        """
        deadline = self.parts.clock.boottime_ms() + wait_ms
        while self.session is None and self.phase is ReplicaPhase.TAKING_OVER:
            left = deadline - self.parts.clock.boottime_ms()
            if left <= 0:
                break
            self._changed.clear()
            await within(self.parts.clock, left, self._changed)
        if self.session is None or self.phase is not ReplicaPhase.SERVING:
            raise self.away()
        return self.session

    async def submit(self, session: Session, work: Callable[[Session], Awaitable[T]]) -> T:
        """Queue ``work`` behind all other acts on this replica; its result.

        The work runs to its end even when the caller is cancelled.
        :raises Problem: of the work, or that the replica is no longer served here.
        """
        if session is not self.session:
            raise self.away()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_retrieved)
        self._jobs.put_nowait(_Job(work, answer))
        return await asyncio.shield(answer)

    async def commit(self, session: Session, manifest: Manifest) -> Manifest:
        """Commit ``manifest`` as the next one; only from inside a job.

        :param manifest: the new state; number, epoch and policy are set here.
        :raises Deposed, StorageFailed, Problem: LEASE_LOST before anything was written.
        """
        self.check_deadline()
        following = next_manifest(session.manifest, session.epoch, session.incarnation)
        policy = policy_of(self.record.policy)
        to_commit = _with_number_of(manifest, following, policy)
        await session.folder.commit(to_commit)
        session.manifest = to_commit
        self.committed()
        return to_commit

    def check_deadline(self) -> None:
        """:raises Problem: LEASE_LOST when this node may not act now."""
        standing = self.parts.standing
        if standing.may_act() and standing.incarnation == self.incarnation:
            return
        raise Problem(
            Reason.LEASE_LOST,
            "this node has lost touch with its cluster and may not act",
            remedy="ask the client access point for the owner again",
            node=self.parts.node,
        )

    def away(self) -> Problem:
        """Why the replica is not served here right now."""
        if self.phase is ReplicaPhase.DAMAGED:
            return Problem(
                Reason.REPLICA_DAMAGED,
                f"the newest manifest of replica {self.replica_id} does not read back",
                field="replica_id",
                value=self.replica_id,
                remedy=f"look at {self.record.folder_path} with: vmrctl store repair",
                node=self.parts.node,
            )
        if self.phase in (ReplicaPhase.STOPPED, ReplicaPhase.REMOVING):
            return Problem(
                Reason.NOT_OWNER,
                "this node no longer owns the replica",
                remedy="ask the client access point for the owner again",
            )
        if self.phase is ReplicaPhase.RELEASING:
            return draining(self.parts.node)
        return Problem(
            Reason.NODE_UNREACHABLE,
            "this node is taking the replica over"
            + (f" (last attempt: {self.last_problem})" if self.last_problem else ""),
            remedy="ask again in a moment",
            node=self.parts.node,
        )

    def stop(self, phase: ReplicaPhase = ReplicaPhase.STOPPED) -> None:
        """Queued jobs are still done, then the task ends. Idempotent."""
        self.phase = phase
        self._stop.set()
        self._jobs.put_nowait(None)
        self._changed.set()

    def update(self, record: ReplicaRecord) -> None:
        """The replica record changed."""
        self.record = record

    async def wait_for_change(self) -> None:
        """Until phase or session change; look at both before waiting."""
        self._changed.clear()
        await self._changed.wait()

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` beside the queue, at the longest as long as this task lives."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- the task ------------------------------------------------------------------------------

    async def run(self, slots: asyncio.Semaphore) -> None:
        """Take over and serve until stopped, deposed or no longer named."""
        pause_ms = self.parts.limits.retry_low_ms
        while not self._stop.is_set():
            try:
                async with slots:
                    session = await self._take_over()
                pause_ms = self.parts.limits.retry_low_ms
                await self._work(session)
            except NotOurs:
                break
            except Deposed as deposed:
                if not await self._deposed(deposed):
                    break
            except ManifestDamaged as damaged:
                self.nothing_left = self._is_erased(damaged) or isinstance(damaged, _ForeignFolder)
                self._damaged(damaged)
                pause_ms = self.parts.limits.retry_high_ms
            except (StorageFailed, StoreUnavailable, OutcomeUnknown, Problem) as failed:
                self.nothing_left = self._is_erased(failed)
                self.last_problem = str(failed)
                _log.warning("replica %s: %s", self.replica_id, failed)
            finally:
                await self._end_session()
            await within(self.parts.clock, pause_ms, self._stop)
            pause_ms = min(2 * pause_ms, self.parts.limits.retry_high_ms)
        if self.phase is not ReplicaPhase.REMOVING:
            self.phase = ReplicaPhase.STOPPED
        self._changed.set()

    async def _take_over(self) -> Session:
        """data-safety §2.3 (a)-(e), in exactly this order."""
        if self.phase is ReplicaPhase.DAMAGED:
            self.phase = ReplicaPhase.TAKING_OVER
        record, epoch, incarnation = self.record, self.epoch, self.incarnation
        folder = await self.parts.replica_store.open_folder(
            record.folder_path, create=not record.established
        )

        async def still_named() -> bool:
            return await self.records.names_us(self.replica_id, epoch, incarnation)

        first = None
        if not record.established:
            # A folder's name may have been used by a replica whose data stayed.
            self._check_ours(await folder.read_highest())
            first = first_manifest(record, epoch, incarnation)
        manifest = await folder.take_over(epoch, incarnation, still_named, first)
        self._check_ours(manifest)
        if not record.established:
            self.record = await self.records.change(self.replica_id, _established)
        self.check_deadline()
        session = Session(epoch, incarnation, folder, manifest)
        self.session, self.last_problem = session, ""
        if self.phase is ReplicaPhase.TAKING_OVER:
            self.phase = ReplicaPhase.SERVING
        self.parts.domains.wanted(self.record, manifest, folder)
        self._changed.set()
        return session

    def _check_ours(self, found: Manifest | None) -> None:
        if found is not None and found.replica_id != self.replica_id:
            raise _ForeignFolder(
                f"{self.record.folder_path} holds replica {found.replica_id}; it is left alone"
            )

    def _is_erased(self, failed: Exception) -> bool:
        return self.record.tombstoned and isinstance(failed, FolderMissing | NoManifest)

    async def _work(self, session: Session) -> None:
        while True:
            job = await self._jobs.get()
            if job is None:
                if self._stop.is_set() and self._jobs.empty():
                    return
                continue
            try:
                result = await job.work(session)
            except Problem as problem:
                _answer(job, problem)
            except (Deposed, StorageFailed, ManifestDamaged, NotOurs) as failed:
                _answer(job, self._outcome_unknown(failed))
                raise
            except BaseException as failed:
                _answer(job, failed)
                raise
            else:
                if not job.answer.done():
                    job.answer.set_result(result)

    def _outcome_unknown(self, failed: Exception) -> Problem:
        if isinstance(failed, StorageFailed) and failed.no_space:
            return no_space(self.record.storage_location, self.parts.node)
        if isinstance(failed, StorageFailed):
            return storage_failed(failed, self.parts.node)
        return Problem(
            Reason.NOT_OWNER,
            "another node has taken the replica over",
            remedy="ask the client access point for the owner again",
        )

    async def _deposed(self, deposed: Deposed) -> bool:
        """Ask the cluster store; whether the replica is still ours (with a raised epoch)."""
        self._note("replica.fenced", f"{deposed}", Severity.WARNING)
        try:
            held = await self.records.read_owner(self.replica_id)
            if held is None or not ownership.names(held.owner, self.parts.node, self.incarnation):
                return False
            if deposed.highest_epoch >= held.owner.epoch and not await self.records.raise_epoch(
                self.replica_id, deposed.highest_epoch
            ):
                return False
            held = await self.records.read_owner(self.replica_id)
        except (StoreUnavailable, OutcomeUnknown) as failed:
            self.last_problem = str(failed)
            return True
        if held is None or not ownership.names(held.owner, self.parts.node, self.incarnation):
            return False
        self.epoch = held.owner.epoch
        self.raising = False
        return True

    def _damaged(self, damaged: ManifestDamaged) -> None:
        if self.record.removing and self.record.delete_data:
            return
        if self.last_problem != str(damaged):
            self._note("point.damaged", f"REPLICA_DAMAGED: {damaged}", Severity.ERROR)
        self.last_problem = str(damaged)
        if not self._stop.is_set():
            self.phase = ReplicaPhase.DAMAGED

    async def _end_session(self) -> None:
        session, self.session = self.session, None
        if self.phase is ReplicaPhase.SERVING:
            self.phase = ReplicaPhase.TAKING_OVER
        if session is not None:
            session.ended.set()
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            if job is not None:
                _answer(job, self.away())
        if self._stop.is_set():
            self._jobs.put_nowait(None)
        self._changed.set()

    def _note(self, name: str, message: str, severity: Severity) -> None:
        self.parts.events.write(
            name,
            message,
            severity=severity,
            replica_id=self.replica_id,
            vm_name=self.record.vm_name,
            data={"epoch": str(self.epoch)},
        )

    # -- jobs ----------------------------------------------------------------------------------

    async def tidy(self, session: Session) -> None:
        """Job: fallen pins and finished runs leave the manifest, unnamed files the directory."""
        over = self._fallen(session)
        if over:
            # The cached record may be older than the pin, and what is removed is gone for good.
            try:
                await self.records.refresh(self.replica_id)
            except StoreUnavailable as failed:
                _log.info("replica %s: pins stay for now: %s", self.replica_id, failed)
                return
            self.record = self.records.cached_record(self.replica_id) or self.record
            over = self._fallen(session)
        for operation_id in sorted(over):
            await self.commit(session, without_operation(session.manifest, operation_id))
            self.check_deadline()
            await session.folder.remove_overlays(operation_id)
        self.check_deadline()
        await session.folder.remove_unnamed(session.manifest, session.epoch)

    def _fallen(self, session: Session) -> set[str]:
        living = frozenset(
            kv.key.rpartition("/")[2] for kv in self.parts.cache.items(self.parts.keys.nodes)
        )
        return {
            pin.operation_id
            for pin in session.manifest.pins
            if ownership.pin_is_over(self.record, pin.operation_id, pin.incarnation, living)
        }

    async def erase(self, session: Session) -> None:
        """Job: commit the tombstone, then remove the directory's content."""
        if not session.manifest.tombstone:
            await self.commit(session, tombstoned(session.manifest))
        # Whoever comes next must be able to tell a directory that is gone from one that is lost.
        self.record = await self.records.change(self.replica_id, _tombstoned)
        self.check_deadline()
        await session.folder.remove_all()


def _nothing() -> None:
    """Nobody listens."""


def _no_stream(_: Problem) -> None:
    """No stream is open."""


def draining(node: str) -> Problem:
    """The refusal of a node that gives its replicas up."""
    return Problem(
        Reason.DRAINING,
        f"node {node} is being drained",
        remedy="ask the client access point for the owner again",
        node=node,
    )


def no_space(location: str, node: str) -> Problem:
    """The refusal of a full storage location."""
    return Problem(
        Reason.NO_SPACE,
        f"the storage location {location} of node {node} is full",
        field="storage_location",
        value=location,
        remedy="free or add space; the sender tries again by itself",
        node=node,
    )


def storage_failed(failed: StorageFailed, node: str) -> Problem:
    """The answer after an I/O error: nothing is known of the last act."""
    return Problem(
        Reason.STORE_UNAVAILABLE,
        f"the storage of node {node} failed: {failed}",
        remedy="ask GetReplica for the head, then open with resume",
        node=node,
    )


def _with_number_of(manifest: Manifest, following: Manifest, policy: dict[str, Any]) -> Manifest:
    return replace(
        manifest,
        n=following.n,
        epoch=following.epoch,
        incarnation=following.incarnation,
        policy=policy,
    )


def _established(record: ReplicaRecord) -> ReplicaRecord:
    return replace(record, established=True)


def _tombstoned(record: ReplicaRecord) -> ReplicaRecord:
    return replace(record, tombstoned=True)


def _answer(job: _Job, failed: BaseException) -> None:
    if not job.answer.done():
        job.answer.set_exception(failed)


def _retrieved(answer: asyncio.Future[Any]) -> None:
    # The caller may have gone; what the job raised was logged or answered by its task.
    if not answer.cancelled():
        answer.exception()
