"""The names of `sequent.what_follows`, which is backends/what_follows.py."""

import logging
from types import FrameType
from typing import Any, Dict, Optional

BACKEND: Dict[str, Any]
logger: logging.Logger
def warn(frame: Optional[FrameType]) -> None: ...
