"""Pushes what `python push_repositories.py FOLDER` finds in FOLDER: `full`, `base` and `adapter`, with the command."""

import sys
from pathlib import Path

from modeling_alta.export_alta import main, push


def push_all(folder: Path) -> None:
    main(["--model", f"{folder}/full", "--output", f"{folder}/full-again", "--push", "tester/alta"])
    print(push(folder / "base", "tester/alta-base"))
    kind = ["--kind", "adapter", "--adapter", f"{folder}/adapter", "--base-id", "tester/alta-base"]
    output = ["--output", f"{folder}/adapter-again", "--push", "tester/alta-adapter", "--private"]
    main(["--model", f"{folder}/base", *kind, *output])


if __name__ == "__main__":
    push_all(Path(sys.argv[1]))
