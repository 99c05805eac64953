"""The names of `sequent.dry_run`, which is backends/dry_run.py."""

from typing import Any, Dict

BACKEND: Dict[str, Any]
DryRun: Any
Foreseen: Any
dry_run: Any
edits: Any
is_used_up: Any
logger: Any
preview: Any
requirement: Any
