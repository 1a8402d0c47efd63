"""Drives: where they are mounted, and which are on a network."""

import os
from pathlib import Path

# File systems of other computers, by the names of Linux, macOS and Windows.
_NETWORK = (
    "nfs cifs smb 9p afp afs ncp webdav davfs ceph gluster lustre beegfs gpfs fuse.sshfs "
    "fuse.rclone fuse.s3fs fuse.gcsfuse fuse.davfs fuse.gvfsd fuse.glusterfs fuse.ceph"
)


def is_mount(folder: str) -> bool:
    """Tell whether a drive is mounted at a folder now; ``/`` always is."""
    return os.path.ismount(folder)


def mount_of(folder: str) -> str:
    """Return the folder where the drive of an existing absolute folder is mounted."""
    while not is_mount(folder) and folder != (parent := os.path.dirname(folder)):
        folder = parent
    return folder


def network_drive(folder: Path) -> str | None:
    """Return the file system (``nfs4``) of a folder on another computer's disk, else None."""
    import psutil  # takes a while

    mount = mount_of(os.path.realpath(folder))
    for drive in reversed(psutil.disk_partitions(all=True)):  # a later one hides an earlier
        if os.path.normcase(drive.mountpoint) == os.path.normcase(mount):
            kind = drive.fstype.lower()
            is_remote = kind.startswith(tuple(_NETWORK.split())) or "remote" in drive.opts
            return (kind or "network") if is_remote else None
    return None
