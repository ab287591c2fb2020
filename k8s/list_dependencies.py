"""Print a project's dependencies, for an image layer that outlives changes of its code.

`python list_dependencies.py pyproject.toml`
"""

import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    print(*tomllib.loads(Path(sys.argv[1]).read_text())["project"]["dependencies"], sep="\n")
