"""Train by several recipes one after the other in the same processes, whose launch takes longer than a tiny run.

Arguments: `recipe.yaml`, or `recipe.yaml:name=value` with a setting in place of the recipe's.
"""

import sys

from accelerate.state import AcceleratorState, PartialState

import train_accelerate
from recipes.recipe import read_recipe


def main(words: list[str]) -> None:
    # A launch connects its processes once, and the end of a run would part them.
    PartialState.destroy_process_group = lambda self, group=None: None
    for word in words:
        path, _, override = word.partition(":")
        train_accelerate.main(read_recipe(path, [override] if override else []))
        AcceleratorState._reset_state()


if __name__ == "__main__":
    main(sys.argv[1:])
