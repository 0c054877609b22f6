"""The configuration files that core/balancing/README.md shows: the tests run the very text that users copy."""

import os
import re

from conftest import ROOT

README = os.path.join(ROOT, "core", "balancing", "README.md")


def recipe(path, **replaced):
    """Return the block that begins with `# PATH`, with some of its words replaced: each must stand in it."""
    with open(README, encoding="utf-8") as file:
        blocks = re.findall(r"^```\w*\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
    text = next(block for block in blocks if block.startswith("# %s\n" % path))
    for word, other in replaced.get("words", {}).items():
        assert word in text, word
        text = text.replace(word, other)
    return text
