"""Small corpora in their real layout, for the tests of the corpus modules."""

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from processing.engine.study_plan import Plan
from processing.engine.write_records import write_records
from processing.records.study_records import SPLIT_NAMES, load_study_records


def write_table(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """A CSV file, gzipped if its name says so; what a row does not give is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_image(path: Path, grey: int) -> None:
    """A flat image of 32 pixels a side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32), grey, np.uint8)).save(
        path, "PNG" if path.name.endswith(".png") else "JPEG", quality=100
    )


def write_dicom(path: Path, pixels: np.ndarray) -> None:
    """An uncompressed 8-bit DICOM file."""
    import pydicom
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    dicom = pydicom.Dataset()
    dicom.file_meta = pydicom.dataset.FileMetaDataset()
    dicom.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dicom.file_meta.MediaStorageSOPClassUID = dicom.SOPClassUID = DigitalXRayImageStorageForPresentation
    dicom.file_meta.MediaStorageSOPInstanceUID = dicom.SOPInstanceUID = generate_uid()
    dicom.Rows, dicom.Columns = pixels.shape
    dicom.SamplesPerPixel, dicom.PhotometricInterpretation, dicom.PixelRepresentation = 1, "MONOCHROME2", 0
    dicom.BitsAllocated = dicom.BitsStored = 8
    dicom.HighBit = 7
    dicom.PixelData = pixels.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dicom.save_as(path, enforce_file_format=True)


def write_and_load(plan: Plan, output: Path, num_rows: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Records by study id, and the summary, whose counts must add up to the input."""
    summary = write_records(plan, output)
    records = [record | {"split": split} for split in SPLIT_NAMES for record in load_study_records(output, split)]
    left_out = {
        kind: sum(n for why, n in summary["excluded"].items() if why.startswith(kind)) for kind in ("row", "study")
    }
    assert summary["rows"] == num_rows == summary["images"] + left_out["row"]
    assert summary["records"] == len(records) == summary["studies"] - left_out["study"]
    assert summary["records"] == summary["with_prior"] + sum(summary["without_prior"].values())
    return {record["study_id"]: record for record in records}, summary


def grey(image: Image.Image | None) -> int | None:
    """The value of a flat image."""
    return None if image is None else image.getpixel((0, 0))
