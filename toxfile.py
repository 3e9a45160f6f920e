"""Lets tox find the interpreters that pyenv has, though it has none of them activated.

tox imports this file before it looks for interpreters, and looks for them on the path.
"""

from __future__ import annotations

import os
from pathlib import Path

_root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
_folders = (str(path.parent) for path in sorted(_root.glob("versions/3.*/bin/python")))
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *_folders])
