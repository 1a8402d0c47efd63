"""Files are whole or absent."""

import os

import pytest

from maest.helpers.files.atomic import atomic_path, point_link, write_json


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("name", ["a.npy", "n" * 240 + ".npy"])
def test_written_whole_with_its_suffix(tmp_path, name, durable):
    path = tmp_path / "new" / name
    with atomic_path(path, durable) as temporary:
        assert (temporary.suffix, temporary.parent) == (".npy", path.parent)
        temporary.write_text("x")
        assert not path.exists()
    assert path.read_text() == "x"
    assert list(path.parent.iterdir()) == [path]


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
    for link, target in (("a.npy", "blob"), ("new.json", "elsewhere/new"), ("loop", "loop")):
        (tmp_path / link).symlink_to(target)
    for link, target in (("a.npy", "blob"), ("new.json", "elsewhere/new")):
        with atomic_path(tmp_path / link) as temporary:
            assert temporary.suffix == (tmp_path / link).suffix
            temporary.write_text(link)
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / target).read_text() == link
    with pytest.raises(OSError, match="loop"), atomic_path(tmp_path / "loop"):
        pass
    assert (tmp_path / "loop").is_symlink()


def test_failure_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": float("nan")})
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == '{\n  "old": null\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_link_is_replaced(tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        point_link(tmp_path / "latest", tmp_path / name)
        assert (tmp_path / "latest").resolve() == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "latest"]
