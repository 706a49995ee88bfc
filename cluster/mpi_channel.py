"""Messages between a process and the MPI ranks it started: JSON over a Unix socket, a file descriptor beside it.

A message is its length (8 bytes, little endian) and UTF-8 JSON; a descriptor travels with the length (SCM_RIGHTS).
Both sides block in `receive` while nothing is to do, which costs no CPU; a wait inside of MPI would spin.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

_LENGTH = struct.Struct("<Q")


def send(channel: socket.socket, message: Mapping[str, Any], descriptor: int | None = None) -> None:
    """Send one message; the descriptor is duplicated on its way and stays the caller's to close.

    Raises:
        TypeError, ValueError: the message holds something that JSON cannot.
        OSError: the other side is gone.
    """
    payload = json.dumps(message).encode()
    length = _LENGTH.pack(len(payload))
    if descriptor is None:
        channel.sendall(length)
    else:
        socket.send_fds(channel, [length], [descriptor])
    channel.sendall(payload)


def receive(channel: socket.socket) -> tuple[dict[str, Any], int | None]:
    """The next message, and the descriptor that came with it, now the caller's to close.

    Raises:
        EOFError: the other side has closed.
        OSError: the other side is gone.
    """
    data, descriptors, _, _ = socket.recv_fds(channel, _LENGTH.size, 1, socket.MSG_CMSG_CLOEXEC)
    data += _receive_exactly(channel, _LENGTH.size - len(data)) if data else b""
    if not data:
        raise EOFError("the other side has closed the channel")
    (length,) = _LENGTH.unpack(data)
    message: dict[str, Any] = json.loads(_receive_exactly(channel, length))
    return message, descriptors[0] if descriptors else None


def _receive_exactly(channel: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        received = channel.recv_into(view)
        if received == 0:
            raise EOFError(f"the channel was closed {len(view)} bytes before the end of a message")
        view = view[received:]
    return bytes(data)
