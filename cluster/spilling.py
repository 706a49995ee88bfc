"""How much the object stores of a cluster have moved to disk, asked in the background; Ray does so silently."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

import grpc
import ray
from ray._private.internal_api import node_stats

log = logging.getLogger(__name__)

EVERY_S = 5.0


@dataclass(slots=True)
class SpillWatch:
    """Asks every node in turn, in a thread of its own: a node that hangs or dies holds nobody up.

    Warns once when the first bytes are spilled.
    """

    _by_node: dict[str, int] = field(default_factory=dict, init=False)
    """Of nodes that are gone, what they had spilled when they answered last."""
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _warned: bool = field(default=False, init=False)

    @property
    def bytes(self) -> int:
        """Bytes spilled by all nodes since they were started, as of the latest round."""
        return sum(self._by_node.values())

    def start(self) -> None:
        """Begin to watch."""
        self._thread = threading.Thread(target=self._watch, name="spilling", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; harmless when repeated."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=EVERY_S)

    def look(self) -> None:
        """One round over the nodes."""
        for node in ray.nodes():
            if not node["Alive"] or self._stopped.is_set():
                continue
            try:
                stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
            except grpc.RpcError as error:  # it died since `ray.nodes` was told that it lives
                log.info("node %s does not tell what it has spilled: %s", node["NodeManagerAddress"], error)
                continue
            self._by_node[node["NodeID"]] = int(stats.store_stats.spilled_bytes_total)
        if self.bytes and not self._warned:
            self._warned = True
            log.warning(
                "Ray has begun to move blocks from memory to disk (%.0f MiB so far), which slows the run down: lower "
                "run.blocks_in_flight or dataset.block_mib, or start Ray with a larger object store",
                self.bytes / 2**20,
            )

    def _watch(self) -> None:
        while not self._stopped.wait(EVERY_S):
            try:
                self.look()
            except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:  # Ray is being shut down
                log.info("nobody is left to be asked about spilling: %s", error)
                return
