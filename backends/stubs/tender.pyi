"""The names of `sequent.tender`, which is backends/tender.py."""

from typing import Any, Dict

BACKEND: Dict[str, Any]
Tender: Any
logger: Any
start: Any
