"""What the header of a DICOM radiograph says: whose it is, when it was taken, and which view it shows.

The first of these that names a view decides it: ViewPosition, ViewCodeSequence, PatientOrientation (rows that run to
the left or right of the patient make a frontal, to the front or back a lateral), SeriesDescription. A text that names
both a frontal and a lateral, such as "CHEST PA AND LAT", decides nothing.

The part of the body is that of BodyPartExamined, else of AnatomicRegionSequence. Without either, a SeriesDescription
must name the chest, as "RIBS AP" does not, or nothing but the view and how it was taken, as in "PORTABLE AP".
"""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pydicom

from modeling_alta.radiograph_alta import is_system_failure
from processing.corpora.mimic_views import NEUTRAL_WORDS


__all__ = ["DicomHeader", "read_header"]

MODALITIES = ("CR", "DX", "DR", "RG")
CHEST = re.compile(r"CHEST|CXR|TH?[OÓ]RA|LUNG|PULM", re.IGNORECASE)
SPINE = re.compile(r"SPIN|LUMB|VERTEB|COLUMN", re.IGNORECASE)  # the thoracic one is no chest
FRONTAL_WORDS = ("PA", "AP", "FRONTAL")  # the first one found names the view
LATERAL_WORDS = frozenset(("LAT", "LATERAL", "LL", "RL"))
OTHER_WORDS = frozenset(
    "AXIAL DECUB DECUBITUS LAO LLD LLO LORDOTIC LPO OBL OBLIQUE RAO RLD RLO RPO SWIMMER SWIMMERS XTABLE".split()
)
# Beside the names of views, these leave open which part of the body is seen.
PLAIN_WORDS = NEUTRAL_WORDS.union(
    "AND BEDSIDE CR DR EXP EXPIRATION GRID IN INSP INSPIRATION L LEFT MOBILE R RADIOGRAPH RAY RIGHT SEMI".split(),
    "SITTING STANDING VIEWS X XR".split(),
    FRONTAL_WORDS,
    LATERAL_WORDS,
    OTHER_WORDS,
)
LONG_WORDS = {
    "POSTERO-ANTERIOR": "PA",
    "POSTEROANTERIOR": "PA",
    "ANTERO-POSTERIOR": "AP",
    "ANTEROPOSTERIOR": "AP",
    "CROSS-TABLE": "XTABLE",
    "CROSS TABLE": "XTABLE",
    "CROSSTABLE": "XTABLE",
    "X-TABLE": "XTABLE",
    "X TABLE": "XTABLE",
}
TAGS = (
    "AccessionNumber",
    "AnatomicRegionSequence",
    "BodyPartExamined",
    "BurnedInAnnotation",
    "Modality",
    "PatientID",
    "PatientName",
    "PatientOrientation",
    "SeriesDescription",
    "StudyDate",
    "StudyInstanceUID",
    "StudyTime",
    "ViewCodeSequence",
    "ViewPosition",
)


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """
    One file.

    Args:
        study_uid, patient_id, patient_name, accession (`str`): as in the header.
        date (`datetime`, *optional*): of the study; midnight without a time of day.
        view (`str`): "PA", "AP", "frontal", "lateral", "other", or `""` where nothing decides it.
        problem (`str`, *optional*): a reason, "row: ...", for which the file cannot be taken.
    """

    study_uid: str = ""
    patient_id: str = ""
    patient_name: str = ""
    accession: str = ""
    date: datetime | None = None
    view: str = ""
    problem: str | None = None


def read_header(path: str | Path) -> DicomHeader:
    """Read the header of a file, and none of its pixels; a file that is no DICOM has its `problem` said."""
    path = Path(path)
    if not path.stat().st_size:
        return DicomHeader(problem="row: file is empty")
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(TAGS))
        return _interpret(dataset)
    except Exception as error:  # pydicom raises almost anything on damaged content
        if is_system_failure(error):
            raise
        return DicomHeader(problem="row: file is no DICOM")


def _interpret(dataset: Any) -> DicomHeader:
    names = ("StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber")
    identifiers = [str(dataset.get(name) or "").strip() for name in names]
    date = _read_date(str(dataset.get("StudyDate") or ""), str(dataset.get("StudyTime") or ""))
    view = _read_view(dataset)
    return DicomHeader(*identifiers, date, view, _find_problem(dataset, *identifiers[:2], view))


def _find_problem(dataset: Any, study_uid: str, patient_id: str, view: str) -> str | None:
    if not len(dataset):
        return "row: file is no DICOM"
    if not (study_uid and patient_id):
        return "row: no StudyInstanceUID or PatientID"
    if (dataset.get("Modality") or MODALITIES[0]) not in MODALITIES:
        return "row: another modality than radiography"
    part = str(dataset.get("BodyPartExamined") or "") or _code_meanings(dataset, "AnatomicRegionSequence")
    if part and not _is_chest(part):
        return "row: another part of the body than the chest"
    if not part and not _may_be_chest(str(dataset.get("SeriesDescription") or "")):
        return "row: nothing in the header says that it shows the chest"
    if dataset.get("BurnedInAnnotation") == "YES":
        return "row: text is burned into the image"
    if view in ("", "other"):
        return "row: another view than frontal or lateral" if view else "row: nothing in the header decides the view"
    return None


def _is_chest(text: str) -> bool:
    return CHEST.search(text) is not None and not SPINE.search(text)


def _may_be_chest(description: str) -> bool:
    return _is_chest(description) or _words(description) <= PLAIN_WORDS


def _code_meanings(dataset: Any, name: str) -> str:
    return " ".join(str(code.get("CodeMeaning") or "") for code in dataset.get(name) or ())


def _read_date(date: str, time: str) -> datetime | None:
    """ "20200131" and "0930" or "093000.123"; a time that cannot be read leaves the day."""
    digits = time.strip().partition(".")[0].replace(":", "").ljust(6, "0")
    for text, date_format in ((date.strip() + digits, "%Y%m%d%H%M%S"), (date.strip(), "%Y%m%d")):
        try:
            return datetime.strptime(text, date_format)
        except ValueError:
            continue
    return None


def _read_view(dataset: Any) -> str:
    return (
        _view_in_words(str(dataset.get("ViewPosition") or ""))
        or _view_in_words(_code_meanings(dataset, "ViewCodeSequence"))
        or _view_of_orientation(dataset.get("PatientOrientation") or ())
        or _view_in_words(str(dataset.get("SeriesDescription") or ""))
    )


def _words(text: str) -> set[str]:
    text = text.upper()
    for long, short in LONG_WORDS.items():
        text = text.replace(long, short)
    return set(re.findall(r"[^\W\d_]+", text))


def _view_in_words(text: str) -> str:
    words = _words(text)
    frontal = next((word for word in FRONTAL_WORDS if word in words), "")
    if words & OTHER_WORDS:
        return "other"
    if words & LATERAL_WORDS:
        return "" if frontal else "lateral"
    return frontal.lower() if frontal == "FRONTAL" else frontal


def _view_of_orientation(orientation: Any) -> str:
    directions = {str(direction)[:1] for direction in orientation}
    if any(len(str(direction)) != 1 for direction in orientation) or not directions & set("HF"):
        return ""
    return "frontal" if directions & set("LR") else "lateral" if directions & set("AP") else ""
