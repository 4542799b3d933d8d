"""Finds the images of a corpus by name, whatever folders they were unpacked into."""

import os
from collections.abc import Callable
from pathlib import Path


__all__ = ["find_images"]


def find_images(root: str | Path, suffix: str, key: Callable[[str], str] = str) -> dict[str, str]:
    """
    List the images anywhere below a folder.

    Args:
        root (`str` or `Path`): the folder; one that is a link is followed, links below it are not.
        suffix (`str`): end of the file names, such as ".png", in any case.
        key (callable, *optional*): a file name to what it is looked up by; the name itself by default.

    Returns:
        `dict[str, str]`: key → path below `root`. Of several files with one key, the first by path.
    """
    found: dict[str, str] = {}
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        relative = os.path.relpath(folder, root)
        for name in sorted(names):
            if name.lower().endswith(suffix) and not name.startswith("."):
                found.setdefault(key(name), os.path.normpath(os.path.join(relative, name)))
    return found
