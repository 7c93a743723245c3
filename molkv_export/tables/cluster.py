"""Writing the shards of a table by a Ray cluster: each shard is a task, which any node may run.

All nodes must see the checkpoint and the folder of the bundle under the same paths, or by URLs. A task writes into a
folder of its own; this process moves the finished shard to its place, or the task uploads it. So it does no harm if a
task runs twice, for example because its node was cut off and came back.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from molkv_bundle import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    FileInfo,
    MissingExtraError,
    MolkvError,
    OutputError,
    RemoteFolder,
    Shard,
    Table,
    one_line,
)
from molkv_export import __version__
from molkv_export.checkpoints import Checkpoint
from molkv_export.families import open_checkpoint
from molkv_export.source.hashes import HashedSource
from molkv_export.tables.plan import Memory
from molkv_export.tables.resume import machine
from molkv_export.tables.rows import row_source
from molkv_export.tables.table_writer import write_table
from molkv_export.temporary_folder import temporary_folder

RETRIES = 3  # of a task whose worker or node dies, or whose disk fails
TASKS = "tasks"  # a folder beside the shards, in which each task has its own folder
_LIBRARIES = 640 * 1024**2  # RAM of a worker process without tables, in bytes; PyTorch takes most of it
_CONNECT_SECONDS = 5.0
_HEALTH_SECONDS = 30.0  # includes the start of Python, and its import of Ray
_LARGEST_PORT = 65535
_POLL_SECONDS = 0.5
_END_SECONDS = 10.0


class Job(NamedTuple):
    """Everything that the tasks of an export have in common."""

    checkpoint: str  # an absolute path, or a URL
    files: dict[str, Any]  # of the checkpoint, as this process sees them: `Checkpoint.versions`
    hashes: dict[str, str]  # of the checkpoint's files, by name
    table: Table
    memory: Memory
    folder: str  # for the shards, if nothing is uploaded
    upload_to: str  # the URL to which tasks upload shards; empty if they write into the folder

    def check_node(self) -> None:
        """Check that this node sees the folder of the process that started the export.

        Raises:
            OutputError: It does not. The message names the node.
        """
        node = socket.gethostname()
        if not self.upload_to and not Path(self.folder).is_dir():
            raise OutputError(
                f"node {node}: does not see {self.folder}; BUNDLE must be in a folder that all nodes share, or in "
                "object storage"
            )

    @contextmanager
    def open_checkpoint(self) -> Iterator[Checkpoint]:
        """Open the checkpoint, and check that this node has the right one, before and after the block.

        Raises:
            CheckpointError: It is missing, is another one, or changes. The message names the node.
        """
        try:
            with ExitStack() as stack:
                is_open = self.checkpoint in _OPEN
                source = _OPEN.pop(self.checkpoint) if is_open else open_checkpoint(self.checkpoint)
                stack.enter_context(source)
                self._check_files(source)
                yield source
                HashedSource(source, self.hashes).check()
                if source.mirror is not None:
                    stack.pop_all()  # it stays open
                    _OPEN[self.checkpoint] = source
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"node {socket.gethostname()}: {error}") from error

    def _check_files(self, source: Checkpoint) -> None:
        if source.versions != self.files and _hashes(source) != self.hashes:
            raise CheckpointError(f"{self.checkpoint}: is another checkpoint there; give all nodes the same checkpoint")


class Written(NamedTuple):
    """The result of a task."""

    info: FileInfo
    path: str  # of the shard; empty if it was uploaded
    machine: str  # the kind of CPU


def versions() -> dict[str, str]:
    """Return the versions of the software that determine a shard's bytes."""
    return {"molkv-export": __version__, "torch": str(torch.__version__)}


def _text(found: dict[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in found.items())


# What a worker process keeps for its next tasks: hashes, and open remote checkpoints, whose bytes it fetches once.
_KNOWN: dict[tuple[str, str], dict[str, str]] = {}
_OPEN: dict[str, Checkpoint] = {}


def _hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the hashes of a checkpoint's files. A worker takes them once for each state of the files."""
    key = checkpoint.place, repr(checkpoint.versions)
    if key not in _KNOWN:
        _KNOWN[key] = checkpoint.sha256()
    return _KNOWN[key]


def write_one(job: Job, shard: Shard) -> Written:
    """Write one shard, as a task on any node.

    Raises:
        OutputError, CheckpointError: This node cannot take part, the checkpoint changed, or the upload failed.
        OSError: The disk of this node is full, or fails.
    """
    job.check_node()
    if job.upload_to:
        with temporary_folder("tasks") as folder:
            info = _write(job, shard, folder)
            RemoteFolder(job.upload_to, OutputError).upload(folder / shard.file, shard.file, info.sha256)
        return Written(info, "", machine())
    folder = Path(job.folder) / TASKS / shard.file / uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        return Written(_write(job, shard, folder), str(folder / shard.file), machine())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(job: Job, shard: Shard, folder: Path) -> FileInfo:
    found = list[FileInfo]()
    with job.open_checkpoint() as source:
        write_table(
            row_source(source),
            job.table,
            job.memory,
            folder,
            shards=[shard],
            finish=lambda _name, info: found.append(info),
            advance=lambda _: None,
        )
    return found[0]


def write_table_on_ray(
    job: Job,
    address: str | None,
    begin: Callable[[], None],
    *,
    shards: Sequence[Shard],
    finish: Callable[[str, FileInfo, str], None],
    advance: Callable[[int], object],
) -> None:
    """Write shards as tasks of a Ray cluster. Each task takes one CPU and the RAM of its plan.

    Args:
        job: The job. Its memory plan is for one core.
        address: "HOST:PORT" of the cluster; None for the cluster that RAY_ADDRESS names or that runs on this machine.
            If there is none, one starts on this machine, and ends with this call.
        begin: Called before the first task.
        shards: The shards to write.
        finish: Called with the name, size and hash of each shard that is in its place, and the kind of its CPU.
        advance: Called with numbers of bytes; a negative number if a task begins again.

    Raises:
        ArgumentError: The cluster does not answer, or has no node that is large enough for a task.
        MolkvError: A task failed with this error.
        OutputError: A shard could not be written in several attempts.
    """
    with _cluster(address) as ray:
        memory = job.memory.total + _LIBRARIES
        _check_resources(ray.nodes(), memory)
        task = ray.remote(
            num_cpus=1,
            memory=memory,
            max_retries=RETRIES,
            retry_exceptions=[OSError],
            scheduling_strategy="SPREAD",  # so that a task whose disk is full is tried on another node
        )(_task)
        begin()
        pending = {task.remote(versions(), pickle.dumps((job, shard))): shard for shard in shards}
        finished = seen = 0
        try:
            while pending:
                done, _ = ray.wait(list(pending), timeout=_POLL_SECONDS)
                for reference in done:
                    shard = pending.pop(reference)
                    written = _result(ray, reference, shard)
                    if written.path:
                        Path(written.path).rename(Path(job.folder) / shard.file)
                    finish(shard.file, written.info, written.machine)
                    finished += written.info.size
                total = finished + (0 if job.upload_to else _written(Path(job.folder), pending.values()))
                advance(total - seen)
                seen = total
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
            if pending:  # a task that ends later would make its folder again
                ray.wait(list(pending), num_returns=len(pending), timeout=_END_SECONDS)
            shutil.rmtree(Path(job.folder) / TASKS, ignore_errors=True)


def _task(expected: dict[str, str], pickled: bytes) -> Written:
    """Write one shard on this node, after checking that it has the expected software, which can read the job.

    Raises:
        OutputError: The node has other versions. The message names the node. For other errors see `write_one`.
    """
    if versions() != expected:
        raise OutputError(
            f"node {socket.gethostname()}: has {_text(versions())}, expected {_text(expected)}; install the same "
            "versions on all nodes"
        )
    return write_one(*pickle.loads(pickled))


def _written(folder: Path, shards: Iterable[Shard]) -> int:
    """Return how many bytes of unfinished shards the most advanced attempt for each shard has written."""
    most = dict.fromkeys((shard.file for shard in shards), 0)
    for file in (folder / TASKS).glob("*/*/*"):
        with suppress(OSError):  # an attempt that fails removes its files
            if file.name in most:
                most[file.name] = max(most[file.name], file.stat().st_size)
    return sum(most.values())


def _result(ray: Any, reference: Any, shard: Shard) -> Written:
    """Return a task's result, or raise its error as one that a user understands."""
    try:
        written: Written = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, MolkvError):
            raise cause from None
        if isinstance(cause, OSError):
            raise OutputError(
                f"{shard.file}: cannot be written, in {RETRIES + 1} attempts ({cause.strerror or cause}); free some "
                "space on the nodes, or check their disks"
            ) from error
        if isinstance(cause, ImportError):
            raise OutputError(
                f"a node cannot import molkv-export ({cause}); install {_text(versions())} on all nodes"
            ) from error
        raise
    except ray.exceptions.RayError as error:  # the worker or its node died in every attempt
        raise OutputError(
            f"{shard.file}: its task died in {RETRIES + 1} attempts ({one_line(error)}); check the nodes, and their RAM"
        ) from error
    return written


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Connect to a Ray cluster, or start one on this machine; yield the module `ray`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a head that we start sends nothing to Ray's makers
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # Ray's default has no limit
    import ray

    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ArgumentError("address", address, f"a Ray cluster of the same versions ({one_line(error)})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def check_cluster(address: str | None) -> None:
    """Check, before any other work, that a Ray head answers; `ray.init` itself would try for minutes.

    Args:
        address: As in `write_table_on_ray`.

    Raises:
        ArgumentError: None answers, or the address is malformed.
        MissingExtraError: Ray is not installed.
    """
    if find_spec("ray") is None:
        raise MissingExtraError(
            "--engine ray: the package ray is not installed; install it with: pip install 'molkv-export[ray]'"
        )
    named = os.environ.get("RAY_ADDRESS", "")
    if address is not None or re.fullmatch(r"[^/]+:\d+", named):
        _check_address(named if address is None else address)


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _LARGEST_PORT:
        raise ArgumentError("address", address, "HOST:PORT of a Ray cluster's head, such as 10.0.0.1:6379")
    start = "start one with: ray start --head"
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise ArgumentError("address", address, f"a Ray cluster's head that answers ({error}); {start}") from error
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(check, capture_output=True, timeout=_HEALTH_SECONDS, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        what = f"a Ray cluster's head, but something else answers there; {start}"
        if b"InvalidAuthToken" in (error.stderr or b""):
            what = (
                "a token for this Ray cluster; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to its `ray get-auth-token`"
            )
        raise ArgumentError("address", address, what) from error


def _check_resources(nodes: list[dict[str, Any]], memory: int) -> None:
    """Refuse a cluster on which no task could ever run."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(has.get("CPU", 0) >= 1 and has.get("memory", 0) >= memory for has in alive):
        most = max((has.get("memory", 0) for has in alive), default=0)
        raise ArgumentError(
            "max_memory",
            f"tasks of {memory / 1024**3:.1f} GiB each",
            f"a node with 1 CPU and that much RAM; the largest node offers {most / 1024**3:.1f} GiB",
        )
