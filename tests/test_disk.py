import os

import pytest

from training.disk import put_file


def refuse(source, target):
    raise OSError("Operation not permitted")


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_is_put_over_another_by_a_link_or_where_there_are_none_by_a_copy(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_text("new")
    target.parent.mkdir()
    target.write_text("old")
    for _ in range(2):  # the second time, it is there already
        put_file(source, target)
        assert target.read_text() == "new" and source.samefile(target) == has_links
        assert [path.name for path in target.parent.iterdir()] == ["target"]
