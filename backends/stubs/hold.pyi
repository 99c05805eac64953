"""The names of `sequent.hold`, which is backends/hold.py."""

from typing import Any, Dict

BACKEND: Dict[str, Any]
ask: Any
