"""Loads classifiers as a user without this package does and prints the answers as one line of JSON.

`python -I load_classifiers.py IMAGES REPOSITORY…`: a folder of radiographs, and folders of classifiers.
"""

import json
import sys
from pathlib import Path


# Python's isolated mode leaves the folder of the script out.
sys.path.append(str(Path(__file__).parent))

from load_repositories import hide, origin  # noqa: E402


def answer(repository: Path, study: dict[str, str]) -> dict:
    from transformers import AutoModelForImageClassification, AutoProcessor

    model = AutoModelForImageClassification.from_pretrained(repository, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    logits = model(**processor(images=study, return_tensors="pt")).logits
    labels = list(model.config.id2label.values())
    return {"origin": origin(model), "logits": logits.tolist(), "labels": labels}


def main(images: str, *repositories: str) -> None:
    assert hide(["modeling_alta"]) == []
    import torch

    torch.set_grad_enabled(False)
    study = {name: str(Path(images, f"{name}.png")) for name in ("current_frontal", "prior_frontal")}
    print(json.dumps({Path(name).name: answer(Path(name), study) for name in repositories}))


if __name__ == "__main__":
    main(*sys.argv[1:])
