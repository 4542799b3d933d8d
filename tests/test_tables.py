import gzip

import pytest

from processing.corpora.tables import find_table, read_row_at, read_table, read_table_with_positions


TEXT = '\ufeffid, view ,note\n1, PA ,"two\nlines"\n\n2\n3,AP,x,extra\n'


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_only_the_columns_asked_for_are_read_stripped_and_complete(tmp_path, name):
    write = gzip.open if name.endswith(".gz") else open
    with write(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write(TEXT)
    rows = list(read_table(tmp_path / name, ["view", "id"], ["age"]))
    assert rows == [{"view": v, "id": i, "age": ""} for v, i in (("PA", "1"), ("", "2"), ("AP", "3"))]
    assert next(read_table(tmp_path / name, ["note"])) == {"note": "two\nlines"}


def test_missing_column_or_file_is_told_before_the_first_row(tmp_path):
    (tmp_path / "a.csv").write_text("id\n1\n")
    with pytest.raises(ValueError, match=r"a\.csv must have the columns \['id', 'view'\], but lacks \['view'\]"):
        read_table(tmp_path / "a.csv", ["id", "view"])
    with pytest.raises(FileNotFoundError, match="`path` must be a table"):
        read_table(tmp_path / "b.csv", ["id"])
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match=r"empty\.csv must have the columns"):
        read_table(tmp_path / "empty.csv", ["id"])


def test_damaged_table_names_the_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id\n" + b"1\n" * 9000 + b"\xff\n")
    with pytest.raises(ValueError, match=r"a\.csv must be a table \(CSV in UTF-8\), but cannot be read after line"):
        list(read_table(tmp_path / "a.csv", ["id"]))
    whole = gzip.compress(b"id\n" + bytes(range(48, 58)) * 9999)
    for content in (whole[:-20], b"no gzip"):
        (tmp_path / "b.csv.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.csv\.gz must be a table"):
            list(read_table(tmp_path / "b.csv.gz", ["id"]))


def test_table_is_found_by_pattern_plain_before_gzipped(tmp_path):
    for name in ("mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-2.0.0-split.csv", "train.csv.gz"):
        (tmp_path / name).touch()
    assert find_table(tmp_path, "mimic-cxr-2.*-split.csv").name == "mimic-cxr-2.0.0-split.csv"
    assert find_table(tmp_path, "train.csv").name == "train.csv.gz"
    with pytest.raises(FileNotFoundError, match=r"folder with the table valid\.csv"):
        find_table(tmp_path, "valid.csv")
    (tmp_path / "mimic-cxr-2.1.0-split.csv").touch()
    with pytest.raises(ValueError, match=r"one table mimic-cxr-2\.\*-split\.csv, got .* with \['mimic-cxr-2\.0\.0"):
        find_table(tmp_path, "mimic-cxr-2.*-split.csv")


def test_row_is_found_again_at_its_position(tmp_path):
    text = '\ufeffid,note\r\n\r\n1,"two\r\nlines, é"\r\n2,\u2028x\n\n3,"""last"""'
    (tmp_path / "a.csv").write_bytes(text.encode())
    rows = list(read_table_with_positions(tmp_path / "a.csv", ["id", "note"]))
    assert [row["note"] for _, row in rows] == ["two\r\nlines, é", "x", '"last"']
    for position, row in rows:
        assert read_row_at(tmp_path / "a.csv", position, ["note", "id"]) == row
