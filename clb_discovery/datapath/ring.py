"""Read a BPF ring buffer: memory shared with the kernel (Documentation/bpf/ringbuf.rst)."""

from __future__ import annotations

import mmap
import os
import select
import struct
from collections.abc import Iterator
from typing import Final

_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_HEADER: Final = 8
_POSITION: Final = struct.Struct("=Q")
_LENGTH: Final = struct.Struct("=I")


class Ring:
    """The only reader of a ring buffer.

    The first page has the position of the reader, the second that of the writers. The data follow, mapped twice in a
    row, so that records that wrap around are contiguous.
    """

    def __init__(self, fd: int, size: int) -> None:
        """Map a ring buffer.

        :param fd: descriptor of the map; the caller may close it afterwards.
        :param size: bytes of data, a power of two.
        """
        page = mmap.PAGESIZE
        self._size = size
        self._read = mmap.mmap(fd, page)
        self._written = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        self._full = False
        self._fd = os.dup(fd)  # epoll forgets a descriptor that is closed
        self._poll = select.epoll()
        self._poll.register(self._fd, select.EPOLLIN)

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are records, for the loop of another reader."""
        return self._poll.fileno()

    def close(self) -> None:
        """Unmap the ring buffer; its content stays."""
        self._poll.close()
        os.close(self._fd)
        self._read.close()
        self._written.close()

    def skip(self) -> None:
        """Skip all records that are in the buffer now."""
        for _ in self._records():
            pass
        self.was_full()

    def was_full(self) -> bool:
        """Tell whether the buffer was full at some time since the last call, so that records may have been lost.

        Programs drop records silently, and only the reader makes room: so every lost record leaves a full buffer that
        the reader sees.
        """
        was, self._full = self._full, False
        return was

    def records(self, timeout: float) -> Iterator[bytes]:
        """Wait for records, and return all present ones.

        :param timeout: seconds to wait at most; 0 does not block.
        """
        self._poll.poll(timeout)
        yield from self._records()

    def _records(self) -> Iterator[bytes]:
        position = _POSITION.unpack_from(self._read)[0]
        while position < _POSITION.unpack_from(self._written)[0]:
            start = mmap.PAGESIZE + position % self._size
            length = _LENGTH.unpack_from(self._written, start)[0]
            if length & _BUSY:
                return
            size = length & ~_DISCARDED
            data = self._written[start + _HEADER : start + _HEADER + size]
            length_in_all = _HEADER + (size + 7) // 8 * 8
            # The condition of the kernel's __bpf_ringbuf_reserve, for a record of the same size.
            self._full |= _POSITION.unpack_from(self._written)[0] + length_in_all - position >= self._size
            position += length_in_all
            _POSITION.pack_into(self._read, 0, position)
            if not length & _DISCARDED:
                yield data
