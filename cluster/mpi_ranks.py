"""MPI ranks as the process sees them that started them: welcomed, asked, lost, and ended without a trace."""

from __future__ import annotations

import logging
import os
import re
import secrets
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.cluster.mpi_channel import receive, send
from forebay.cluster.mpi_errors import MpiError, MpiTimeout
from forebay.cluster.mpi_launch import Patience, Tail, how_it_ended, shown, start_mpiexec

log = logging.getLogger(__name__)

GRACE_S = 1.0
"""After one rank has failed, how long the others have to answer too; those that wait for it in a collective cannot."""
END_S = 3.0
"""What mpiexec gets to end by itself once its ranks are gone."""
STACKS_S = 0.3
"""What ranks get to write their stacks before a time limit kills them."""

_CREDENTIALS = struct.Struct("iII")
_SEGMENT = re.compile(r"\s(/dev/shm/mpich_\S+)$", re.MULTILINE)


@dataclass(slots=True)
class Rank:
    """One rank."""

    channel: socket.socket
    lifeline: int
    """Write end of a pipe; when it closes, the kernel kills the rank and what it has started.  -1 when it is closed."""
    epitaph: int
    """Read end of a pipe; holds the rank's wait status once it has died."""
    pid: int = 0
    """Of the process that works; 0 until it has called."""

    def ask_for_stack(self) -> None:
        """Let the rank write its Python stack to stderr, also from within native code."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)

    def kill(self) -> None:
        """SIGKILL by way of the lifeline, which cannot hit another process that has got this one's number."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1

    def wait_status(self) -> int | None:
        """How a rank that has closed its channel died; None when that was never written."""
        if not select.select([self.epitaph], [], [], END_S)[0]:
            return None
        status = os.read(self.epitaph, 32)
        return int(status) if status else None

    def wait_for_end(self) -> None:
        """Wait until the process that works has given up its memory and its files; mpiexec knows the other one only."""
        poll = select.poll()
        poll.register(self.channel, 0)  # nothing but the hang-up, whatever is left to read
        if not poll.poll(1000 * END_S):
            log.warning("process %d of an MPI rank has not ended within %g s of its SIGKILL", self.pid, END_S)

    def close(self) -> None:
        """Close our ends."""
        self.channel.close()
        os.close(self.epitaph)


@dataclass(frozen=True, slots=True)
class Reply:
    """A rank's answer to a task."""

    rank: int
    message: Mapping[str, Any]
    descriptor: int | None
    """Of rank 0's arrays."""

    @property
    def kind(self) -> str:
        """One of "done", "raised" (in the function) and "refused" (before or after it)."""
        return str(self.message["kind"])

    def close(self) -> None:
        """Give up the arrays."""
        if self.descriptor is not None:
            os.close(self.descriptor)


class Ranks:
    """R ranks under one mpiexec; the iteration is in the order of MPI_COMM_WORLD once `gather` has returned."""

    def __init__(self, process: subprocess.Popen[bytes], count: int) -> None:
        assert process.stdout is not None
        self.tail = Tail(process.stdout)
        self.count = count
        self._process = process
        self._members: list[Rank] = []
        self._owner = os.getpid()
        self._ending = threading.Lock()
        self._reaped = False

    def __iter__(self) -> Iterator[Rank]:
        return iter(self._members)

    @property
    def alive(self) -> bool:
        """True while mpiexec and every (idle) rank are there; an idle rank is silent until it ends."""
        if self._reaped or self._process.poll() is not None:
            return False
        silent = [end for rank in self for end in (rank.channel, rank.epitaph)]
        return not select.select(silent, [], [], 0)[0]

    def gather(self, listener: socket.socket, patience: Patience) -> None:
        """Accept every rank, wait for its MPI_Init, and put the ranks in order.

        Raises:
            MpiError: a rank ended before, or the ranks do not make one MPI job.
            MpiTimeout, MpiCancelled: as `patience` has it.
        """
        while len(self._members) < self.count:
            listener.settimeout(patience.slice_s())
            with suppress(TimeoutError):
                self._welcome(listener.accept()[0])
            self._refuse_ended()
        for rank in self:
            rank.pid = self._hear(rank, patience)["pid"]
        numbers = [self._number_of(rank, patience) for rank in self]
        self._members = [rank for _, rank in sorted(zip(numbers, self, strict=True), key=lambda pair: pair[0])]
        self.unlink_segments()

    def _welcome(self, channel: socket.socket) -> None:
        credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != os.geteuid():
            channel.close()
            return
        channel.settimeout(None)
        their_lifeline, lifeline = os.pipe()
        epitaph, their_epitaph = os.pipe()
        self._members.append(Rank(channel, lifeline, epitaph))
        try:
            send(channel, {}, their_lifeline)
            send(channel, {}, their_epitaph)
        except OSError:
            raise self._not_started() from None
        finally:
            os.close(their_lifeline)
            os.close(their_epitaph)

    def _hear(self, rank: Rank, patience: Patience) -> Mapping[str, Any]:
        while not select.select([rank.channel], [], [], patience.slice_s())[0]:
            self._refuse_ended()
        try:
            return receive(rank.channel)[0]
        except (EOFError, OSError):
            raise self._not_started() from None

    def _number_of(self, rank: Rank, patience: Patience) -> int:
        message = self._hear(rank, patience)
        if message["size"] != self.count:
            raise MpiError(
                f"mpiexec started {self.count} ranks, but MPI_COMM_WORLD has {message['size']}: mpiexec and mpi4py "
                f"belong to different MPI libraries; install both from one source"
            )
        return int(message["rank"])

    def _refuse_ended(self) -> None:
        if self._process.poll() is not None:
            raise self._not_started()

    def _not_started(self) -> MpiError:
        self.kill()
        output = self._last_output()
        return MpiError(
            f"{self.count} MPI ranks could not be started; mpiexec exited with {self._process.poll()} after\n{output}",
            output=output,
        )

    def exchange(self, task: Mapping[str, Any], descriptor: int | None, patience: Patience) -> list[Reply]:
        """Give every rank a task; all answers, or fewer when a rank failed and others still wait for it.

        Raises:
            MpiError: a rank ended without an answer.
            MpiTimeout, MpiCancelled: as `patience` has it.  After each of the three the ranks are dead.
        """
        replies: list[Reply] = []
        self.tail.clear()
        try:
            for number, rank in enumerate(self):
                self._send(number, rank, task, descriptor)
            self._collect(replies, patience)
        except BaseException as error:
            for reply in replies:
                reply.close()
            if isinstance(error, MpiTimeout):
                self._ask_for_stacks()
            self.kill()
            if isinstance(error, MpiError) and not error.output:
                output = self._last_output()
                raise type(error)(f"{error}{shown(output)}", rank=error.rank, output=output) from None
            raise
        return replies

    def _send(self, number: int, rank: Rank, task: Mapping[str, Any], descriptor: int | None) -> None:
        try:
            send(rank.channel, task, descriptor)
        except OSError:
            raise self._death_of(number) from None

    def _collect(self, replies: list[Reply], patience: Patience) -> None:
        # epoll reports in the order of arrival: of ranks that ended, the first is the one that mpiexec did not kill.
        with select.epoll() as poll:
            waiting = {rank.channel.fileno(): number for number, rank in enumerate(self)}
            for channel in waiting:
                poll.register(channel, select.EPOLLIN)
            give_up_at = float("inf")
            while waiting and time.monotonic() < give_up_at:
                for channel, _ in poll.poll(patience.slice_s()):
                    poll.unregister(channel)
                    replies.append(self._reply_of(waiting.pop(channel)))
                    if replies[-1].kind != "done":
                        give_up_at = min(give_up_at, time.monotonic() + GRACE_S)

    def _reply_of(self, number: int) -> Reply:
        try:
            return Reply(number, *receive(self._members[number].channel))
        except (EOFError, OSError):
            raise self._death_of(number) from None

    def _death_of(self, number: int) -> MpiError:
        status = self._members[number].wait_status()
        self.kill()
        output = self._last_output()
        number, how = how_it_ended(number, status, output)
        return MpiError(f"rank {number} of {self.count} {how}{shown(output)}", rank=number, output=output)

    def _last_output(self) -> str:
        return self.tail.text(complete_within_s=END_S)

    def _ask_for_stacks(self) -> None:
        for rank in self:
            rank.ask_for_stack()
        time.sleep(STACKS_S)

    def ask_to_leave(self) -> None:
        """Let every rank call MPI_Finalize and end by itself."""
        for rank in self:
            with suppress(OSError):  # it has ended by another way
                send(rank.channel, {"kind": "exit"})

    def unlink_segments(self) -> None:
        """Remove the names of MPICH's shared memory.

        MPICH does so in MPI_Finalize only.  A name that a killed rank leaves behind costs memory, and a later job whose
        hash collides with it takes the old segment for its own.  Attached ranks need no name.
        """
        for rank in self:
            with suppress(OSError):  # the rank is gone
                for path in _SEGMENT.findall(Path(f"/proc/{rank.pid}/maps").read_text(encoding="utf-8")):
                    Path(path).unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL to every rank, from any thread; in a process that was forked off the owner nothing."""
        with self._ending:
            if os.getpid() != self._owner or self._reaped:
                return
            self.unlink_segments()
            for rank in self:
                rank.kill()
            if len(self._members) < self.count:
                self._process.terminate()  # mpiexec ends the ranks that have not called yet

    def reap(self, within_s: float = END_S) -> None:
        """Wait for the end of mpiexec, force it when that takes too long, and close everything."""
        if os.getpid() != self._owner:
            return
        for force in (self.kill, self._process.terminate, self._process.kill):
            try:
                self._process.wait(within_s)
                break
            except subprocess.TimeoutExpired:
                log.warning("MPI ranks have not ended within %g s; they are forced to", within_s)
                force()
        self._process.wait()
        with self._ending:
            if not self._reaped:
                self._reaped = True
                for rank in self:
                    rank.kill()
                    rank.wait_for_end()
                    rank.close()


def start_ranks(count: int, threads: int, patience: Patience) -> Ranks:
    """Start ranks and wait until each has been through MPI_Init.

    Raises:
        MpiUnavailable: no mpiexec here.
        MpiError: the ranks ended; the text has what they wrote.
        MpiTimeout, MpiCancelled: as `patience` has it; nothing is left behind.
    """
    with _listener(count) as (listener, name):
        ranks = Ranks(start_mpiexec(name, count, threads), count)
        try:
            ranks.gather(listener, patience)
        except BaseException:
            ranks.kill()
            ranks.reap()
            raise
    return ranks


@contextmanager
def _listener(count: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket whose name is in no folder (Linux's abstract namespace): it ends with us, however we end."""
    name = f"forebay-mpi-{os.getpid()}-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{name}")
        listener.listen(count)
        yield listener, name
