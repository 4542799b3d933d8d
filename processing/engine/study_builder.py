"""From the planned studies of one patient to records: the function that every worker runs, on any machine."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_alta.radiograph_alta import is_system_failure
from processing.engine.images import TooSmallError, encode_image
from processing.engine.pairing import pair_studies
from processing.engine.study_plan import Corpus, ImageFile, Study, StudyLeftOut


__all__ = ["PatientRecords", "build_patient"]

TEXTS = ("findings", "impression", "report")


@dataclass
class PatientRecords:
    """
    What the studies of one patient became.

    Args:
        records (`list` of `dict`): the keys of `STUDY_FEATURES`, images as `encode_image` gives them.
        excluded (`Counter`): "row: ..." and "study: ..." → how many were left out.
        without_prior (`Counter`): reason → records without a prior.
        num_images (`int`): files kept as the frontal or the lateral of a study.
        unreadable (`list` of `str`): paths of the files that are missing or cannot be decoded.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    excluded: Counter = field(default_factory=Counter)
    without_prior: Counter = field(default_factory=Counter)
    num_images: int = 0
    unreadable: list[str] = field(default_factory=list)


@dataclass
class _Views:
    """A study and the images chosen for it."""

    study: Study
    frontal_file: ImageFile
    frontal: dict[str, Any]
    lateral: dict[str, Any] | None


def build_patient(corpus: Corpus, studies: Sequence[Study]) -> PatientRecords:
    """
    Choose and encode the images of one patient's studies, pair each with its prior, and make the records.

    Args:
        corpus ([`Corpus`]): where the files are and how they are read.
        studies (sequence of [`Study`]): all studies of one patient.

    Returns:
        [`PatientRecords`]: records in the order of `studies`; every study is a record or counted in `excluded`.
    """
    made = PatientRecords()
    usable = [views for study in studies if (views := _choose_images(corpus, study, made))]
    pairings = pair_studies([views.study.time for views in usable])
    for views, pairing in zip(usable, pairings, strict=True):
        prior = None if pairing.prior is None else usable[pairing.prior]
        try:
            made.records.append(_make_record(corpus, views, prior))
        except StudyLeftOut as reason:
            made.excluded[str(reason)] += 1
            continue
        if prior is None:
            made.without_prior[pairing.reason] += 1
    return made


def _choose_images(corpus: Corpus, study: Study, made: PatientRecords) -> _Views | None:
    frontal_file, frontal = _first_readable(corpus, study.frontals, "frontal", made)
    if frontal_file is None:
        made.excluded["row: lateral of a study without a frontal"] += len(study.laterals)
        made.excluded["study: no frontal that can be read" if study.frontals else "study: no frontal"] += 1
        return None
    _, lateral = _first_readable(corpus, study.laterals, "lateral", made)
    return _Views(study, frontal_file, frontal, lateral)


def _first_readable(
    corpus: Corpus, files: Sequence[ImageFile], slot: str, made: PatientRecords
) -> tuple[ImageFile | None, dict[str, Any] | None]:
    for position, file in enumerate(files):
        image, problem = _encode(corpus, file)
        if image is None:
            made.excluded[problem] += 1
            made.unreadable.append(file.shown_as or file.path)
            continue
        made.num_images += 1
        made.excluded[f"row: the study has a better or earlier {slot}"] += len(files) - position - 1
        return file, image
    return None, None


def _encode(corpus: Corpus, file: ImageFile) -> tuple[dict[str, Any] | None, str]:
    """The encoded image, or `None` and why not. A missing decoder or a failing disk is no fault of the file and ends
    the run."""
    path = Path(corpus.root, file.path)
    if corpus.read_image is None and not path.is_file():
        return None, "row: file is missing"
    try:
        image = corpus.read_image(path) if corpus.read_image else path
        return encode_image(image, image_format=corpus.image_format), ""
    except FileNotFoundError:
        return None, "row: file is missing"
    except TooSmallError:
        return None, "row: image has a side of less than 8 pixels"
    except (OSError, ValueError, MemoryError) as error:
        if is_system_failure(error):
            raise
        is_empty = path.is_file() and not path.stat().st_size
        return None, "row: file is empty" if is_empty else "row: file cannot be decoded"


def _make_record(corpus: Corpus, views: _Views, prior: _Views | None) -> dict[str, Any]:
    study = views.study
    if study.left_out:
        raise StudyLeftOut(study.left_out)
    own = {name: getattr(study, name) for name in ("study_datetime", "source", "license", *TEXTS)}
    own |= {"labels": list(study.labels)} | _read_report(corpus, study) | dict(views.frontal_file.fields or {})
    if corpus.needs_report and not own["report"].strip():
        raise StudyLeftOut(corpus.empty_report)
    is_dated = prior is not None and corpus.time_unit == "day"
    return {
        "study_id": study.study_id,
        "patient_id": study.patient_id,
        "study_datetime": own["study_datetime"],
        "current_frontal": views.frontal,
        "current_lateral": views.lateral,
        "prior_frontal": prior.frontal if prior else None,
        "prior_lateral": prior.lateral if prior else None,
        "prior_study_id": prior.study.study_id if prior else None,
        "days_since_prior": study.time - prior.study.time if is_dated else None,
        **{name: own[name] for name in (*TEXTS, "labels", "source", "license")},
    }


def _read_report(corpus: Corpus, study: Study) -> Mapping[str, str]:
    if study.report_file is None:
        return {}
    try:
        texts = corpus.read_report(Path(corpus.root, study.report_file))
    except StudyLeftOut:
        raise
    except FileNotFoundError as error:
        raise StudyLeftOut("study: report is missing") from error
    except (OSError, ValueError) as error:
        if is_system_failure(error):
            raise
        raise StudyLeftOut("study: report cannot be read") from error
    return {name: texts.get(name, "") for name in TEXTS}
