"""Script that gives up rights and then becomes another Python process.

Usage: ``confine.py LIMITS namespaces|limits ARGUMENT…``, where LIMITS is a JSON object of resource
limits by their names in the module ``resource`` and of the ``seconds`` after which the process is
ended even if nobody waits for it any more. The arguments are those of the new process. The script
imports nothing of SafeDraft, because Python runs it without site packages.

With ``namespaces`` (Linux 5.12 and later), the process has no network, sees no other process,
cannot change any file, and has no capabilities; it needs no privileges to get there. If the system
does not allow that, the script exits with 1.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path

_NOBODY = 65534  # user and group inside the namespaces: any but root, which would have capabilities

# From linux/sched.h, linux/mount.h, linux/fcntl.h and linux/prctl.h.
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_SYS_MOUNT_SETATTR, _MOUNT_ATTR_RDONLY, _MS_PRIVATE = 442, 1, 1 << 18
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


def main() -> None:
    """Confine this process and replace it by the new one."""
    text, mode, *arguments = sys.argv[1:]
    limits = json.loads(text)
    signal.alarm(limits.pop("seconds"))
    if mode == "namespaces":
        _enter_namespaces()
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    os.execv(sys.executable, [sys.executable, *arguments])


def _enter_namespaces() -> None:
    """Continue in a child process in its own namespaces; the parent waits and exits like it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    user, group = os.getuid(), os.getgid()
    kinds = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
    call("unshare", _CLONE_NEWUSER | kinds)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_NOBODY} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{_NOBODY} {group} 1")
    read_only = _MountAttributes(set=_MOUNT_ATTR_RDONLY, propagation=_MS_PRIVATE)
    size = ctypes.c_size_t(ctypes.sizeof(read_only))
    call(
        *("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE),
        *(ctypes.byref(read_only), size),
    )
    if child := os.fork():  # the first process of the new process namespace: all die with it
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


if __name__ == "__main__":
    main()
