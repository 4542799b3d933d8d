"""The run's metrics and the evaluation of its model → the cards of the two exported folders."""

import json
from pathlib import Path

from demo.run import WORK
from eval.protocol import write_json
from model_cards.card import build_card


TERMS = "39 studies of the COVID-19 Image Data Collection, mostly CC BY-NC-SA; samples/ATTRIBUTION.md names each."


def main() -> None:
    run = WORK / "alta"
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    for name in ("retrieval", "zero_shot"):
        metrics[name] = json.loads((WORK / "eval" / f"{name}_test.json").read_text(encoding="utf-8"))
    write_json(metrics, WORK / "metrics.json")
    for kind, base in (("full", None), ("adapter", "alta-demo-base")):
        card = build_card(
            metrics, model_id=f"alta-demo-{kind}", kind=kind, base_model=base, license="other", data_terms=TERMS
        )
        Path(run, kind, "README.md").write_text(str(card), encoding="utf-8")
    print(f"wrote {run}/full/README.md and {run}/adapter/README.md")


if __name__ == "__main__":
    main()
