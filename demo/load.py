"""What a user of the exported folder does, in a process that does not import this package's modules."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor, pipeline

from demo.run import WORK


RADIOGRAPH = "samples/images"
LABELS = ["COVID-19 pneumonia", "bacterial pneumonia", "a normal chest"]


def main() -> None:
    full, adapter = str(WORK / "alta" / "full"), str(WORK / "alta" / "adapter")
    radiograph = sorted(str(path) for path in Path(RADIOGRAPH).iterdir())[0]
    trust = {"trust_remote_code": True}
    model = AutoModel.from_pretrained(full, **trust).eval()
    processor = AutoProcessor.from_pretrained(full, **trust)
    inputs = processor(images={"current_frontal": radiograph}, text=LABELS, return_tensors="pt", padding=True)
    with torch.no_grad():
        from_full = model(**inputs).logits_per_image
        from_adapter = AutoModel.from_pretrained(adapter, **trust).eval()(**inputs).logits_per_image
    classify = pipeline("zero-shot-image-classification", model=full, **trust)
    scores = classify(radiograph, candidate_labels=LABELS, hypothesis_template="There is {}.")
    answers = {
        "radiograph": radiograph,
        "scores": scores,
        "local_package_imported": "modeling_alta" in sys.modules,
        "largest_difference_of_adapter_over_base": (from_full - from_adapter).abs().max().item(),
    }
    (WORK / "answers.json").write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(answers, indent=2))


if __name__ == "__main__":
    main()
