"""Which images of Open-i (Indiana University) are frontal and which lateral; the reports do not say it.

Two tables do. `indiana_projections.csv` of the Kaggle copy was made by people who looked at the images, and has the
last word where it is there. `nlmcxr_dicom_metadata.csv` holds the DICOM headers, whose View Position is often empty
and often wrong: one make of device writes PA for laterals too. So from the headers:

- Processing code 60003 is a lateral, whatever View Position says. Nearly all of its images are called PA, and nearly
  all studies of two images that are both called frontal have one image of this code and one of 60025 or 60235.
- Else View Position, and where it is empty the post-processing function (NA_chestLAT_auto, NA_chestAP_auto).
- Else processing codes 1 and 2 are frontals, 3 and 4 laterals: of a 1 and a 3, or a 2 and a 4, of one study the latter
  took more exposure.

Nothing decides the rest, 1,318 images of 7,470 (`tests/test_openi.py` counts them).
"""

import re
from pathlib import Path

from processing.corpora.tables import find_table, read_table


__all__ = ["image_key", "read_openi_views"]

PROJECTIONS = "indiana_projections.csv"
HEADERS = "nlmcxr_dicom_metadata.csv"
POSITION, CODE, FUNCTION = "View Position", "Acquisition Device Processing Code", "Postprocessing Function"
LATERAL_CODE = "60003"
VIEW_OF_POSITION = {
    "PA": "PA",
    "AP": "AP",
    "LL": "lateral",
    "RL": "lateral",
    "LATERAL": "lateral",
    "LARGE LATERAL": "lateral",
}
VIEW_OF_CODE = {"1": "frontal", "2": "frontal", "3": "lateral", "4": "lateral"}
_IMAGE_NAME = re.compile(r"(?:CXR)?(?P<study>\d+)_(?:(?P=study)_)?(?P<image>IM-[\d-]+)(?:\.\w+)*")


def image_key(name: str) -> str:
    """One key for the names of an image: CXR1_1_IM-0001-3001 and CXR1_IM-0001-3001(.png), 1_IM-0001-3001.dcm.png."""
    match = _IMAGE_NAME.fullmatch(name)
    return f"{match['study']}_{match['image']}" if match else name


def read_openi_views(root: str | Path) -> dict[str, str]:
    """
    Read the views of all images from the tables in a folder.

    Args:
        root (`str` or `Path`): folder with `indiana_projections.csv`, `nlmcxr_dicom_metadata.csv` or both, plain or
            gzipped.

    Returns:
        `dict[str, str]`: [`image_key`] → "PA", "AP", "frontal" or "lateral", of the images whose view is decided.

    Raises:
        `FileNotFoundError`: neither table.
        `ValueError`: a missing column.
    """
    tables = [path for name in (HEADERS, PROJECTIONS) if (path := _find(root, name))]
    if not tables:
        raise FileNotFoundError(
            f"`root` must be a folder with the table of views {PROJECTIONS} or {HEADERS} (or .gz), got {root} "
            "without either."
        )
    views: dict[str, str] = {}
    for path in tables:
        views |= _read_projections(path) if path.name.startswith(PROJECTIONS) else _read_headers(path)
    return {key: view for key, view in views.items() if view}


def _find(root: str | Path, name: str) -> Path | None:
    try:
        return find_table(root, name)
    except FileNotFoundError:
        return None


def _read_projections(path: Path) -> dict[str, str]:
    rows = read_table(path, ["filename", "projection"])
    views = ((image_key(row["filename"]), row["projection"].lower()) for row in rows)
    return {key: view for key, view in views if view in ("frontal", "lateral")}


def _read_headers(path: Path) -> dict[str, str]:
    return {image_key(row["imageid"]): _view(row) for row in read_table(path, ["imageid", POSITION], [CODE, FUNCTION])}


def _view(row: dict[str, str]) -> str:
    position, code, function = row[POSITION].upper(), row[CODE], row[FUNCTION]
    if code == LATERAL_CODE:
        return "lateral"
    if position:
        return VIEW_OF_POSITION.get(position, "")
    if function:
        return "lateral" if "LAT" in function else "AP" if "AP" in function else ""
    return VIEW_OF_CODE.get(code, "")
