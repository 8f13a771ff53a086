"""Makes sockets listen on one address, of libraries that can listen on all of them only, as tf.data's service can.

The kernel (Linux, since 5.5) asks a helper process about every `bind` of this thread and of the threads it starts:
seccomp's user notification, which needs no rights. The helper writes the wanted address over "any address" before
the call goes on. No socket is open to others for a moment, and where the mechanism is missing nothing is opened.
"""

import ctypes
import errno
import ipaddress
import os
import platform
import socket
import struct
import subprocess
import sys

from tf_rnnt_kd.errors import UserError

LOOPBACK = "127.0.0.1"
_HELPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bind_helper.py")
# By machine: how the kernel names it, and its numbers of the calls `bind` and `seccomp`.
_MACHINES = {"x86_64": (0xC000003E, 49, 317), "aarch64": (0xC00000B7, 200, 277)}
_SET_NO_NEW_PRIVILEGES, _SET_TRACER = 38, 0x59616D61  # of prctl
_SET_FILTER, _WITH_LISTENER = 1, 8  # of seccomp
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # of BPF
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def listen_only_on(address: str) -> None:
    """From here on, sockets that this thread and those it starts bind to any address are bound to this one.

    For good: a filter cannot be taken back. The helper ends with the process.

    Args:
      address: of an interface, in digits.

    Raises:
      UserError: if it is no address, or this system cannot do it; nothing has changed then.
    """
    packed = _packed(address)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [sys.executable, "-I", _HELPER, str(theirs.fileno()), packed.hex()]
            helper = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        try:
            listener = _filter(helper.pid)
        except OSError as error:
            helper.kill()
            helper.wait()
            raise UserError(
                f"this system cannot keep a server to {address} ({error}): run it where others cannot reach the "
                "machine, and say so by --listen 0.0.0.0"
            ) from error
        socket.send_fds(ours, [b"."], [listener])
    os.close(listener)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address, given in digits."""
    return ipaddress.ip_address(address).is_loopback


def _packed(address: str) -> bytes:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise UserError(f"{address!r} is no address of an interface: give one in digits, such as 192.0.2.7") from None
    return (b"\0" * 10 + b"\xff" * 2 if found.version == 4 else b"") + found.packed


def _filter(helper: int) -> int:
    """Sets the filter; returns the descriptor on which the kernel asks."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    machine, bind, seccomp = _MACHINES[platform.machine()]
    instructions = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, 4),  # the machine
            (_IF_EQUAL, 0, 3, machine),
            (_LOAD, 0, 0, 0),  # the call
            (_IF_EQUAL, 0, 1, bind),
            (_RETURN, 0, 0, _ASK),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_TRACER, ctypes.c_ulong(helper), 0, 0, 0)  # the helper writes into this process
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    program = _Program(len(instructions) // 8, instructions)
    listener = libc.syscall(seccomp, _SET_FILTER, _WITH_LISTENER, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return listener
