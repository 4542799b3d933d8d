import csv
import gzip
import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from processing.corpora.openi_views import image_key
from processing.openi import main, plan_openi, prepare_openi
from processing.records.study_records import SPLIT_NAMES, load_study_records


ARCHIVE = Path(
    os.environ.get("ALTA_OPENI_REPORTS")
    or Path(__file__).parents[2] / "shared" / "data" / "openi" / "NLMCXR_reports.tgz"
)
XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{number}"/><licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
<ccLicense>byncnd</ccLicense><publisher>Indiana University</publisher><title>Indiana Collection</title><Abstract>
<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract><MeSH><major>Cardiomegaly/mild</major><automatic>Heart</automatic></MeSH>{images}</eCitation>"""
HEADERS = ["imageid", "View Position", "Acquisition Device Processing Code", "Postprocessing Function"]


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_csv(path, header, *rows):
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def build(root, *reports, headers=()):
    """Write reports of (names of the images, findings, impression); the image number i of all is flat grey of i."""
    (root / "ecgen-radiology").mkdir(parents=True)
    (root / "NLMCXR_png").mkdir()
    count = 0
    for number, (names, findings, impression) in enumerate(reports, start=1):
        images = "".join(f'<parentImage id="{name}"/>' for name in names)
        text = XML.format(number=number, findings=findings, impression=impression, images=images)
        (root / "ecgen-radiology" / f"{number}.xml").write_text(text, encoding="utf-8")
        for name in names:
            Image.fromarray(np.full((32, 40), count, np.uint8)).save(root / "NLMCXR_png" / f"{name}.png")
            count += 1
    write_csv(root / "nlmcxr_dicom_metadata.csv.gz", HEADERS, *headers)
    return root


def run(root, **options):
    """Records by study id, and the summary, which must add up."""
    summary = prepare_openi(root, root / "out", **options)
    loaded = [record for split in SPLIT_NAMES for record in load_study_records(root / "out", split)]
    left_out = Counter()
    for why, count in summary["excluded"].items():
        left_out[why.split(":")[0]] += count
    assert summary["records"] == len(loaded) == summary["studies"] - left_out["study"]
    assert summary["rows"] == summary["images"] + left_out["row"]
    assert summary["without_prior"] == {"time is not known": len(loaded)}
    return {record["study_id"]: record for record in loaded}, summary


def grey(image):
    return None if image is None else image.getpixel((0, 0))


PAIR = ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001")
PAIR_VIEWS = (("CXR1_IM-0001-3001", "PA", "60003", ""), ("CXR1_IM-0001-4001", "PA", "60025", ""))


def test_a_report_and_its_images_are_one_record_with_the_license_of_the_file(tmp_path):
    records, summary = run(build(tmp_path, (PAIR, "1. Large heart.", "On XXXX."), headers=PAIR_VIEWS))
    record = records["CXR1"]
    assert (grey(record["current_frontal"]), grey(record["current_lateral"])) == (1, 0)
    assert (record["findings"], record["impression"], record["report"]) == ("Large heart.", "", "Large heart.")
    assert record["labels"] == ["Cardiomegaly/mild"] and record["license"] == "CC BY-NC-ND 4.0"
    assert record["source"] == "Indiana Collection, Indiana University" and record["patient_id"] == "CXR1"
    assert summary["settings"] == {"report": "findings+impression"} and not summary["excluded"]


def test_the_archive_as_distributed_gives_what_its_folder_gives(tmp_path):
    root = build(tmp_path / "a", (PAIR, "Clear lungs.", "Normal."), headers=PAIR_VIEWS)
    expected = plan_openi(root)
    with tarfile.open(root / "NLMCXR_reports.tgz", "w:gz") as archive:
        archive.add(root / "ecgen-radiology", "ecgen-radiology")
    shutil.rmtree(root / "ecgen-radiology")
    assert plan_openi(root) == expected


def test_the_sections_of_the_report_are_a_choice_that_the_summary_tells(tmp_path):
    root = build(tmp_path, (PAIR, "Clear lungs.", "Normal chest."), headers=PAIR_VIEWS)
    records, summary = run(root, report="impression")
    assert records["CXR1"]["report"] == "Normal chest." and records["CXR1"]["findings"] == "Clear lungs."
    assert summary["settings"] == {"report": "impression"}
    with pytest.raises(ValueError, match=r"`report` must be one of \['findings', .*got 'all'"):
        plan_openi(root, "all")


@pytest.mark.parametrize(
    ("header", "frontal", "lateral"),
    [
        (("PA", "60025", ""), True, False),
        (("AP", "", ""), True, False),
        (("PA", "60003", ""), False, True),
        (("LL", "", ""), False, True),
        (("LARGE LATERAL", "", ""), False, True),
        (("", "", "NA_chestLAT_auto"), False, True),
        (("", "", "NA_chestAP_auto"), True, False),
        (("", "1", ""), True, False),
        (("", "4", ""), False, True),
        (("", "0", ""), False, False),
        (("OBLIQUE", "1", ""), False, False),
    ],
)
def test_the_headers_decide_the_view(tmp_path, header, frontal, lateral):
    root = build(tmp_path, (("CXR1_IM-1-1",), "Clear lungs.", ""), headers=[("CXR1_IM-1-1", *header)])
    plan = plan_openi(root)
    assert (bool(plan.studies[0].frontals), bool(plan.studies[0].laterals)) == (frontal, lateral)
    assert +plan.excluded == ({} if frontal or lateral else {"row: no table decides the view": 1})


def test_the_projections_of_kaggle_have_the_last_word_and_its_file_names_are_known(tmp_path):
    root = build(tmp_path, (PAIR, "Clear lungs.", ""), headers=PAIR_VIEWS)
    rows = [("1", "1_IM-0001-3001.dcm.png", "Frontal"), ("1", "1_IM-0001-4001.dcm.png", "Lateral")]
    write_csv(root / "indiana_projections.csv", ["uid", "filename", "projection"], *rows)
    for name in PAIR:
        (root / "NLMCXR_png" / f"{name}.png").rename(root / f"{name.removeprefix('CXR1_')}.dcm.png")
    record = run(root)[0]["CXR1"]
    assert (grey(record["current_frontal"]), grey(record["current_lateral"])) == (0, 1)


def test_pa_is_taken_before_ap_and_images_without_a_view_are_counted(tmp_path):
    names = [f"CXR1_IM-1-{number}" for number in range(4)]
    headers = [(name, view, "", "") for name, view in zip(names, ("", "AP", "PA"), strict=False)]
    records, summary = run(build(tmp_path, (names, "Clear lungs.", ""), headers=headers))
    assert grey(records["CXR1"]["current_frontal"]) == 2
    expected = {"row: no table decides the view": 2, "row: the study has a better or earlier frontal": 1}
    assert summary["excluded"] == expected


def test_bad_files_and_reports_are_counted_and_nothing_beside_them_is_lost(tmp_path):
    names = [f"CXR{number}_IM-1-1" for number in range(1, 7)]
    texts = ["Clear lungs.", "", "Normal.", "XXXX XXXX.", "Clear lungs.", "Clear lungs."]
    reports = [((name,), text, "") for name, text in zip(names, texts, strict=True)]
    root = build(tmp_path, *reports, ((), "Clear lungs.", ""), headers=[(name, "PA", "", "") for name in names])
    (root / "NLMCXR_png" / f"{names[4]}.png").unlink()
    (root / "NLMCXR_png" / f"{names[5]}.png").write_bytes(b"")
    (root / "ecgen-radiology" / "8.xml").write_bytes(b"")
    records, summary = run(root)
    assert set(records) == {"CXR1"} and summary["studies"] == 8
    assert summary["excluded"] == {
        "row: file is empty": 1,
        "row: file is missing": 1,
        "study: empty report": 1,
        "study: no frontal": 1,
        "study: no frontal that can be read": 2,
        "study: report cannot be read": 1,
        "study: report of de-identification marks only": 1,
        "study: report of one word": 1,
    }


def test_a_table_or_column_or_report_that_is_not_there_is_an_error(tmp_path, capsys):
    root = build(tmp_path, (PAIR, "Clear lungs.", ""), headers=PAIR_VIEWS)
    write_csv(root / "nlmcxr_dicom_metadata.csv.gz", HEADERS[:1])
    with pytest.raises(ValueError, match=r"metadata.csv.gz must have .* lacks \['View Position'\]"):
        plan_openi(root)
    (root / "nlmcxr_dicom_metadata.csv.gz").unlink()
    with pytest.raises(FileNotFoundError, match="indiana_projections.csv or nlmcxr_dicom_metadata.csv"):
        plan_openi(root)
    shutil.rmtree(root / "ecgen-radiology")
    (root / "NLMCXR_reports.tgz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="must be a tar archive of XML reports"):
        plan_openi(root)
    (root / "NLMCXR_reports.tgz").unlink()
    with pytest.raises(SystemExit, match="1"):
        main(["--root", str(root), "--output", str(tmp_path / "out")])
    assert "error: `root` must be a folder with ecgen-radiology/ or NLMCXR_reports.tgz" in capsys.readouterr().err


def test_the_names_of_an_image_have_one_key():
    names = ["CXR1_1_IM-0001-3001", "CXR1_IM-0001-3001", "1_IM-0001-3001.dcm.png", "CXR1_1_IM-0001-3001.png"]
    assert {image_key(name) for name in names} == {"1_IM-0001-3001"}
    assert image_key("CXR11_1_IM-0001-3001") == "CXR11_1_IM-0001-3001"


def test_every_report_of_the_collection_is_planned_and_every_image_counted():
    if not ARCHIVE.is_file() or not ARCHIVE.with_name("nlmcxr_dicom_metadata.csv.gz").is_file():
        pytest.skip(f"the Open-i reports and headers are not at {ARCHIVE}; set ALTA_OPENI_REPORTS to the archive")
    plan = plan_openi(ARCHIVE.parent)
    images = sum(len(study.frontals) + len(study.laterals) for study in plan.studies)
    assert +plan.excluded == {"row: no table decides the view": 1318}
    assert plan.totals["rows"] == 7470 == images + 1318
    assert Counter(study.left_out for study in plan.studies) == {None: 3927, "study: empty report": 28}
    assert sum(bool(study.frontals) for study in plan.studies) == 3123
    assert sum(bool(study.laterals) for study in plan.studies) == 2828
    assert {study.license for study in plan.studies} == {"CC BY-NC-ND 4.0"}
