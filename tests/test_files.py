"""Files are whole or absent."""

from __future__ import annotations

import os

import pytest

from helpers.files import atomic_path, point_link, write_json


def test_written_whole_with_its_suffix_and_readable_permissions(tmp_path):
    with atomic_path(tmp_path / "new" / "a.npy") as temporary:
        assert temporary.suffix == ".npy"
        assert temporary.parent == tmp_path / "new"
        temporary.write_text("x")
        assert not (tmp_path / "new" / "a.npy").exists()
    assert (tmp_path / "new" / "a.npy").read_text() == "x"
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "new" / "a.npy").stat().st_mode & 0o777 == 0o666 & ~umask


def test_failure_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_link_is_replaced(tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        point_link(tmp_path / "latest", tmp_path / name)
        assert (tmp_path / "latest").resolve() == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "latest"]


def test_a_name_at_the_file_systems_limit(tmp_path):
    path = tmp_path / ("n" * 240 + ".npy")
    with atomic_path(path) as temporary:
        temporary.write_text("x")
    assert path.exists()
