"""Files are whole or absent."""

from __future__ import annotations

import os

import pytest

from maest.helpers.files.atomic import atomic_path, point_link, write_json


def test_written_whole_with_its_suffix_and_readable_permissions(tmp_path):
    with atomic_path(tmp_path / "new" / "a.npy") as temporary:
        assert temporary.suffix == ".npy"
        assert temporary.parent == tmp_path / "new"
        temporary.write_text("x")
        assert not (tmp_path / "new" / "a.npy").exists()
    assert (tmp_path / "new" / "a.npy").read_text() == "x"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_any_new_file(tmp_path, monkeypatch, umask, mode):
    """The umask belongs to all threads: nobody else's files are open to all for an instant."""
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch, atomic_path(tmp_path / "a.npy") as temporary:
            patch.delattr(os, "umask")
            temporary.write_text("x")
        with atomic_path(tmp_path / "b.npy") as temporary:  # as safetensors does
            temporary.unlink()
            temporary.touch(0o600)
    finally:
        os.umask(before)
    for name in ("a.npy", "b.npy"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_link_is_followed(tmp_path):
    (tmp_path / "blob").write_text("old")
    (tmp_path / "a.npy").symlink_to("blob")
    (tmp_path / "new.json").symlink_to("elsewhere/new")
    for name in ("a.npy", "new.json"):
        with atomic_path(tmp_path / name) as temporary:
            assert temporary.suffix == (tmp_path / name).suffix
            temporary.write_text(name)
    assert (tmp_path / "a.npy").is_symlink()
    assert (tmp_path / "blob").read_text() == "a.npy"
    assert (tmp_path / "elsewhere" / "new").read_text() == "new.json"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"), atomic_path(tmp_path / "loop"):
        pass
    assert (tmp_path / "loop").is_symlink()


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
