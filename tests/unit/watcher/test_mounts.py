import pytest

from archaeologist.watcher.mounts import type_of

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:27 / /data rw,relatime shared:2 - nfs4 server:/export rw,vers=4.2
31 30 8:2 / /data/local rw,relatime - xfs /dev/sdb1 rw
32 22 0:30 / /mnt/with\040space rw - fuse.sshfs host:/ rw
33 22 0:31 / /over rw - ext4 /dev/sdc1 rw
34 22 0:32 / /over rw - cifs //host/share rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/database", "ext4"),
        ("/data", "nfs4"),
        ("/data/runs/checkpoints", "nfs4"),
        ("/data/local/runs", "xfs"),
        ("/mnt/with space/x", "fuse.sshfs"),
        ("/over/x", "cifs"),
    ],
)
def test_a_path_lies_on_the_last_mount_of_the_longest_point_above_it(path: str, kind: str) -> None:
    assert type_of(path, MOUNTS) == kind


def test_nothing_is_said_where_nothing_is_mounted() -> None:
    assert type_of("/x", "nonsense\n\n12 3 - \n") is None
