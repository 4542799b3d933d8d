"""Loads a repository as a user without this package does and saves it again.

`python -I resave_repository.py SOURCE TARGET`: folders of a full repository and of the one to write.
"""

import sys
from pathlib import Path


# Python's isolated mode leaves the folder of the script out.
sys.path.append(str(Path(__file__).parent))

from load_repositories import hide  # noqa: E402


def main(source: str, target: str) -> None:
    assert hide(["modeling_alta"]) == []
    from transformers import AutoModelForPreTraining, AutoProcessor

    AutoModelForPreTraining.from_pretrained(source, trust_remote_code=True).save_pretrained(target)
    AutoProcessor.from_pretrained(source, trust_remote_code=True).save_pretrained(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
