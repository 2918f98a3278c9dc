"""Which file system a path lies on, and whether its kernel hears of every change.

inotify tells what this machine's processes do. A change that another machine makes on a shared file system goes by
unheard, so there a folder must be looked at again and again.
"""

import os
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mountinfo")

SHARED: Final = frozenset(
    "9p afs beegfs ceph cifs fuse gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs prl_fs smb3 smbfs vboxsf"  # noqa: SIM905 -- reads better
    " virtiofs vmhgfs".split()
)
"""Types that others may write to; every ``fuse.*`` counts too, since most of them are remote."""


def is_shared(path: Path) -> bool:
    """Whether other machines may change what lies there; False where the system does not say."""
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    kind = type_of(os.path.realpath(path), mounts) or ""
    return kind in SHARED or kind.startswith("fuse.")


def type_of(path: str, mounts: str) -> str | None:
    """The type of the file system that a path lies on.

    Args:
        path: Absolute and resolved.
        mounts: As in ``/proc/self/mountinfo`` (proc(5)).
    """
    found, longest = None, -1
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if not separator or len(fields) < 5 or not after:  # noqa: PLR2004 -- the mount point is the fifth
            continue
        point = _unescaped(fields[4])
        # Of mounts on the same point the last one hides the others.
        if len(point) >= longest and (path == point or path.startswith(point.rstrip("/") + "/")):
            found, longest = after.split()[0], len(point)
    return found


def _unescaped(point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
