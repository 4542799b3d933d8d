import io
import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from benchmarks.synthetic import write_radiographs
from processing.engine.images import encode_image, shrink
from processing.overlap import find_overlap, main, measure_distances
from processing.records.record_scan import difference_hash
from tests.conftest import ROOT
from tests.test_check import make_record, write


SAMPLES = sorted((ROOT / "samples" / "images").glob("*.jpg"))[:12]


def count_bits(first, second):
    return (int.from_bytes(first, "big") ^ int.from_bytes(second, "big")).bit_count()


def as_jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("L")


CHANGES = {
    "compressed again": as_jpeg,
    "half as large": lambda image: image.resize((image.width // 2, image.height // 2)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_copy_of_a_radiograph_is_near_and_another_radiograph_is_not(change):
    images = [shrink(Image.open(path).convert("L")) for path in SAMPLES]
    hashes = [difference_hash(image) for image in images]
    copies = [difference_hash(change(image)) for image in images]
    distances, nearest = measure_distances(copies, hashes)
    assert nearest.tolist() == list(range(len(images))) and distances.max() <= 16
    others = [count_bits(first, second) for first in hashes for second in hashes if first is not second]
    assert min(others) > 16


def test_distance_is_the_number_of_different_bits_over_many_hashes():
    generator = np.random.default_rng(0)
    known = [generator.bytes(32) for _ in range(20_000)]  # more than one lot of columns
    tested = [bytes([known[17_000][0] ^ 0b111, *known[17_000][1:]]), known[3]]
    distances, nearest = measure_distances(tested, known)
    assert distances.tolist() == [3, 0] and nearest.tolist() == [17_000, 3]
    assert len(measure_distances([], known)[0]) == 0


def test_exact_and_near_images_patients_and_reports_are_counted(tmp_path):
    train = [make_record(number, current_frontal=encode_image(SAMPLES[number])) for number in range(4)]
    near = ImageEnhance.Brightness(Image.open(SAMPLES[1]).convert("L")).enhance(1.1)
    tested = [
        make_record(5, current_frontal=train[0]["current_frontal"], patient_id="p0"),
        make_record(6, current_frontal=encode_image(near), report="report 2."),
        make_record(7, current_frontal=encode_image(SAMPLES[8])),
        make_record(8, current_frontal={"bytes": b"broken", "path": None}),
    ]
    found = find_overlap(write(tmp_path / "train", train=train), write(tmp_path / "benchmark", test=tested))
    assert found["exact_images"] == {
        "count": 1,
        "share": 0.25,
        "examples": ["s5: current_frontal = s0: current_frontal"],
    }
    assert found["near_images"]["count"] == 1 and "s6: current_frontal ~ s1" in found["near_images"]["examples"][0]
    assert found["same_patients"]["examples"] == ["s5"] and found["same_reports"]["examples"] == ["s6 = s2"]
    assert found["benchmark_images"] == 4 and found["unreadable"] == 1


def test_priors_of_the_training_records_count_and_other_splits_do_not(tmp_path):
    prior = encode_image(SAMPLES[0])
    train = [make_record(0, prior_frontal=prior, prior_study_id="x")]
    write(tmp_path / "train", train=train, test=[make_record(1, current_frontal=encode_image(SAMPLES[1]))])
    tested = [make_record(2, current_frontal=prior), make_record(3, current_frontal=encode_image(SAMPLES[1]))]
    write(tmp_path / "benchmark", test=tested)
    counts = [
        find_overlap(tmp_path / "train", tmp_path / "benchmark", split=split)["exact_images"]["count"]
        for split in ("train", "test", None)
    ]
    assert counts == [1, 1, 2]


def test_benchmark_can_be_a_folder_of_files_and_the_command_prints_json(tmp_path, capsys):
    (tmp_path / "files").mkdir()
    names = write_radiographs(tmp_path / "files", 2, (40, 50))
    (tmp_path / "files" / "broken.png").write_bytes(b"broken")
    records = [make_record(0, current_frontal=encode_image(tmp_path / "files" / names[1]))]
    write(tmp_path / "train", train=records)
    main([str(tmp_path / "train"), str(tmp_path / "files"), "--output", str(tmp_path / "overlap.json")])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "overlap.json").read_text())
    assert found["exact_images"]["examples"] == ["1.png = s0: current_frontal"]
    assert (found["benchmark"], found["benchmark_images"], found["unreadable"]) == ("files", 3, 1)


def test_folder_with_nothing_to_compare_is_a_clear_error(tmp_path, capsys):
    write(tmp_path / "train", train=[make_record(0)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path / "train"), str(tmp_path / "empty")])
    assert error.value.code == 2 and "`benchmark` must be a folder of" in capsys.readouterr().err
    with pytest.raises(ValueError, match="`split` must be one with study records, got 'test'"):
        find_overlap(tmp_path / "train", tmp_path / "empty", split="test")
