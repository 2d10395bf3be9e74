from __future__ import annotations

from pathlib import Path

import pytest

from factory.store import filesystem


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    (tmp_path / "a b").mkdir()
    file = tmp_path / "mounts"
    file.write_text(
        "/dev/vda / ext4 rw 0 0\n"
        "odd\n"
        f"server:/home {tmp_path}/home nfs4 rw 0 0\n"
        f"/dev/sdb {tmp_path}/home/local xfs rw 0 0\n"
        f"me@host:/ {str(tmp_path).replace(' ', chr(92) + '040')}/a\\040b fuse.sshfs rw 0 0\n"
    )
    return file


@pytest.mark.parametrize(
    ("folder", "kind", "network"),
    [
        ("", "ext4", False),
        ("homes", "ext4", False),
        ("home", "nfs4", True),
        ("home/x/y", "nfs4", True),
        ("home/local/x", "xfs", False),
        ("a b/store", "fuse.sshfs", True),
    ],
)
def test_the_nearest_mount_point_counts(tmp_path: Path, mounts: Path, folder: str, kind: str, network: bool) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert filesystem.kind(tmp_path / folder, mounts) == kind
    assert filesystem.is_network(tmp_path / folder, mounts) is network


def test_a_folder_that_is_not_there_lies_where_its_parent_does(tmp_path: Path, mounts: Path) -> None:
    (tmp_path / "home").mkdir()
    assert filesystem.kind(tmp_path / "home" / "new" / "store", mounts) == "nfs4"


def test_a_system_that_does_not_say_is_believed(tmp_path: Path) -> None:
    assert filesystem.kind(tmp_path, tmp_path / "none") == ""
    assert not filesystem.is_network(tmp_path, tmp_path / "none")


def test_this_system_is_read() -> None:
    assert isinstance(filesystem.kind(Path("/")), str)
