"""Check study records before a model is trained on them.

    python -m processing.check RECORDS

Prints what was found and writes it, with a page of random studies, to `RECORDS/records_report.html`. The exit status
is 1 if a patient is in two splits.
"""

import argparse
import base64
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from modeling_alta.configuration_alta import VIEW_NAMES
from processing.records.bar_chart import draw_bars, draw_histogram
from processing.records.record_checks import check_records
from processing.records.record_scan import ScannedRecord, read_rows, scan_records


__all__ = ["format_checks", "main", "write_report"]

TEMPLATE = Path(__file__).with_name("records_report.html.jinja")
THUMBNAIL = 170  # pixels of the longer side


def format_checks(found: Mapping[str, Any]) -> str:
    """Lines for people, of what `check_records` returns."""
    patients = found["patients"]
    lines = [f"{count} records of {patients[name]} patients in {name}" for name, count in found["records"].items()]
    for level in ("leakage", "errors", "warnings"):
        lines.append(f"{level}:")
        for name, problem in found[level].items():
            examples = f"  ({'; '.join(problem['examples'])})" if problem["examples"] else ""
            lines.append(f"  {name}: {problem['count']}{examples}")
    lines.append("views:")
    for split, shares in found["slots"].items():
        lines.append(f"  {split}: " + ", ".join(f"{view} {share:.0%}" for view, share in shares.items()))
    words = ", ".join(f"{name} {value:g}" for name, value in found["report_words"].items())
    lines += [f"words of a report: {words}", "labels:" if found["labels"] else "labels: none"]
    lines += [f"  {label}: {sum(counts.values())}" for label, counts in list(found["labels"].items())[:20]]
    return "\n".join(lines)


def write_report(
    path: str | Path,
    records: Sequence[ScannedRecord],
    found: Mapping[str, Any],
    output: str | Path,
    num_studies: int = 12,
    seed: int = 0,
) -> None:
    """
    Write the page.

    Args:
        path (`str` or `Path`): folder of the records; its `summary.json` is shown if there is one.
        records (sequence of [`ScannedRecord`]): from `scan_records`.
        found (`dict`): from `check_records`.
        output (`str` or `Path`): HTML file.
        num_studies (`int`, defaults to 12): studies to show.
        seed (`int`, defaults to 0): of their choice.
    """
    summary = Path(path, "summary.json")
    chosen = _choose(records, num_studies, seed)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        found=found,
        summary=json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None,
        plots=[Markup(plot) for plot in _draw_plots(records, found)],
        views=VIEW_NAMES,
        seed=seed,
        studies=[_show(record, row) for record, row in zip(chosen, read_rows(chosen), strict=True)],
    )
    Path(output).write_text(page, encoding="utf-8")


def _choose(records: Sequence[ScannedRecord], num_studies: int, seed: int) -> list[ScannedRecord]:
    """At random, but half of them out of those with the most views, which would else be rare on the page."""
    generator = random.Random(seed)
    shuffled = generator.sample(records, len(records))
    full = sorted(shuffled, key=lambda record: -len(record.images))[: num_studies // 2]
    taken = {id(record) for record in full}
    return full + [record for record in shuffled if id(record) not in taken][: num_studies - len(full)]


def _draw_plots(records: Sequence[ScannedRecord], found: Mapping[str, Any]) -> list[str]:
    plots = [draw_histogram([record.num_words for record in records], "records", "Words of a report")]
    total = sum(found["records"].values())
    shares = [sum(view in record.images for record in records) / total for view in VIEW_NAMES]
    names = [view.replace("_", " ") for view in VIEW_NAMES]
    plots.append(draw_bars(names, [100 * share for share in shares], "% of the records", "Views"))
    days = [record.days_since_prior for record in records if record.days_since_prior is not None]
    plots += [draw_histogram(days, "records", "Days since the prior")] if days else []
    labels = list(found["labels"].items())[:8]
    counts = [sum(of_label.values()) for _, of_label in labels]
    plots += [draw_bars([label for label, _ in labels], counts, "records", "Most frequent labels")] if labels else []
    return plots


def _show(record: ScannedRecord, row: Mapping[str, Any]) -> dict[str, Any]:
    pictures = {view: None if row[view] is None else _thumbnail(row[view]["bytes"]) for view in VIEW_NAMES}
    return {**row, "split": record.split, "pictures": pictures}


def _thumbnail(content: bytes | None) -> str:
    """A data URL, or nothing for an image that cannot be read."""
    try:
        with Image.open(io.BytesIO(content or b"")) as image:
            grey = image.convert("L")
    except Exception:  # decoders raise almost any error on damaged content
        return ""
    grey.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    grey.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m processing.check", description=__doc__.splitlines()[0])
    parser.add_argument("records", help="folder of study records")
    parser.add_argument("--output", help="page to write (default: RECORDS/records_report.html)")
    parser.add_argument("--num-studies", type=int, default=12, help="studies on the page (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (default: 0)")
    parser.add_argument("--num-proc", type=int, help="worker processes (default: all cores)")
    options = parser.parse_args(arguments)
    output = Path(options.output or Path(options.records, "records_report.html"))
    try:
        records = scan_records(options.records, options.num_proc)
        found = check_records(records)
        print(format_checks(found))
        write_report(options.records, records, found, output, options.num_studies, options.seed)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"wrote {output}")
    if any(problem["count"] for problem in found["leakage"].values()):
        parser.exit(1, "error: a patient is in two splits\n")


if __name__ == "__main__":
    main()
