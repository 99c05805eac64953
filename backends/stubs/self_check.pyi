"""The names of `sequent.self_check`, which is backends/self_check.py."""

from typing import Any, Dict

BACKEND: Dict[str, Any]
PATIENCE: Any
known_of_sqlite: Any
self_check: Any
trials: Any
