"""The names of `sequent.spawn`, which is backends/spawn.py."""

from typing import Any, Dict

BACKEND: Dict[str, Any]
SpawnedChild: Any
check: Any
hidden_main: Any
start: Any
