"""Which view a MIMIC-CXR image shows, by the three columns of its metadata that may say so.

1. `ViewPosition`, if it is filled: PA, AP, LATERAL and LL are taken; others (decubitus, oblique, swimmer's,
   cross-table lateral) are other views.
2. `ViewCodeSequence_CodeMeaning`, if it is filled: "postero-anterior", "antero-posterior", "lateral", "left lateral"
   and "right lateral" are taken, others are other views; but "Recumbent" and "Erect" name no view and decide nothing.
3. `PerformedProcedureStepDescription`, if it names one view of the chest and nothing else: "CHEST (PORTABLE AP)", but
   not "CHEST (PA AND LAT)", and not "TRAUMA #2 (AP CXR AND PELVIS PORT)", whose image may be the pelvis.
"""

import re


__all__ = ["FRONTAL_VIEWS", "LATERAL_VIEWS", "NEUTRAL_WORDS", "VIEW_COLUMNS", "read_view"]

FRONTAL_VIEWS = ("PA", "AP")  # best first
LATERAL_VIEWS = ("LATERAL", "LL")  # equally good
VIEW_COLUMNS = ("ViewPosition", "ViewCodeSequence_CodeMeaning", "PerformedProcedureStepDescription")
CODE_MEANINGS = {
    "postero-anterior": "PA",
    "antero-posterior": "AP",
    "lateral": "LATERAL",
    "left lateral": "LL",
    "right lateral": "LATERAL",
}
POSTURES = ("", "erect", "recumbent")
DESCRIBED_VIEWS = {"PA": "PA", "AP": "AP", "LAT": "LATERAL", "LATERAL": "LATERAL"}
# Words that leave the named view as it is; any other may mean another view or another part of the body.
NEUTRAL_WORDS = frozenset(
    "CHEST CXR DX PORT PORTABLE ONLY SINGLE VIEW ONE 1 PRE OP PREOP ERECT UPRIGHT SUPINE".split()
)


def read_view(position: str, code_meaning: str, description: str) -> tuple[str, str]:
    """
    Read the view of an image.

    Args:
        position, code_meaning, description (`str`): values of `VIEW_COLUMNS`.

    Returns:
        `tuple` of `str`: one of `FRONTAL_VIEWS` and `LATERAL_VIEWS`, "other", or "" where nothing decides; and the
        column that decided.
    """
    if position:
        known = position.upper() in FRONTAL_VIEWS + LATERAL_VIEWS
        return position.upper() if known else "other", VIEW_COLUMNS[0]
    if code_meaning.lower() not in POSTURES:
        return CODE_MEANINGS.get(code_meaning.lower(), "other"), VIEW_COLUMNS[1]
    return _read_description(description), VIEW_COLUMNS[2]


def _read_description(description: str) -> str:
    words = set(re.findall(r"[A-Z0-9]+", description.upper()))
    views = {DESCRIBED_VIEWS[word] for word in words & DESCRIBED_VIEWS.keys()}
    is_plain = words - DESCRIBED_VIEWS.keys() <= NEUTRAL_WORDS and bool(words & {"CHEST", "CXR"})
    return views.pop() if len(views) == 1 and is_plain else ""
