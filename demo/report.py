"""The demo's outputs → `demo/report.html`, one self-contained page."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import matplotlib

from demo.run import WORK
from eval.embeddings import embed_studies, embed_texts
from eval.protocol import load_model, load_records
from modeling_alta import VIEW_NAMES
from modeling_alta.radiograph_alta import read_radiograph


matplotlib.use("svg")

OUTPUT = Path("demo/report.html")
TEMPLATE = Path(__file__).with_name("report_template.html")
THUMBNAIL = 150  # pixels of the longer side
NUM_QUERIES = 3
NUM_SHOWN = 4
CURVES = {
    "mrm": ("image_reconstruction_loss", "masked_report_loss"),
    "alta": (
        "global_contrastive_loss",
        "local_contrastive_loss",
        "image_reconstruction_loss",
        "masked_report_loss",
    ),
}


def main() -> None:
    page = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    metrics = read_json(WORK / "alta" / "metrics.json")
    model, processor = load_model(str(WORK / "alta" / "full"))
    answers = read_json(WORK / "answers.json")
    content = page.render(
        metrics=metrics,
        curves={stage: curve_svg(stage) for stage in CURVES},
        retrieval={split: read_json(WORK / "eval" / f"retrieval_{split}.json") for split in ("train", "test")},
        zero_shot={split: read_json(WORK / "eval" / f"zero_shot_{split}.json") for split in ("train", "test")},
        examples={split: retrieve(model, processor, split) for split in ("train", "test")},
        answers=answers,
        radiograph=thumbnail(answers["radiograph"]),
    )
    OUTPUT.write_text(content, encoding="utf-8")
    print(f"wrote {OUTPUT} ({OUTPUT.stat().st_size / 1e6:.1f} MB)")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def curve_svg(stage: str) -> str:
    """Training losses of a stage over its optimizer steps, one plot a loss."""
    from matplotlib import pyplot

    lines = (WORK / stage / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    names = CURVES[stage]
    figure, axes = pyplot.subplots(1, len(names), figsize=(2.9 * len(names), 2.2), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        axis.plot([row["step"] for row in rows], [row[name] for row in rows], color="#1f6f8b", linewidth=1.5)
        axis.set_title(name.removesuffix("_loss").replace("_", " "), fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    svg = buffer.getvalue()
    return markupsafe.Markup(svg[svg.index("<svg") :])


def retrieve(model, processor, split: str) -> list[dict[str, Any]]:
    """For the first reports of a split, the studies nearest to each."""
    records = load_records(str(WORK / "records"), split)
    reports = records["report"]
    similarity = embed_texts(model, processor, reports) @ embed_studies(model, processor, records).T
    queries = []
    for index in range(min(NUM_QUERIES, len(records))):
        nearest = similarity[index].argsort(descending=True)[:NUM_SHOWN].tolist()
        rank = int((similarity[index] >= similarity[index, index]).sum())
        found = [describe(records[i], reports[i] == reports[index], float(similarity[index, i])) for i in nearest]
        queries.append({"report": reports[index], "rank": rank, "candidates": len(records), "found": found})
    return queries


def describe(record: dict[str, Any], is_right: bool, similarity: float) -> dict[str, Any]:
    views = [(name.replace("_", " "), thumbnail(record[name])) for name in VIEW_NAMES if record[name] is not None]
    names = ("study_id", "labels", "report", "license", "source")
    return {"views": views, "is_right": is_right, "similarity": similarity} | {name: record[name] for name in names}


def thumbnail(image: Any) -> str:
    """A radiograph as the address of a small JPEG inside the page."""
    picture = read_radiograph(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


if __name__ == "__main__":
    main()
