"""The names of `sequent.why_not`, which is backends/why_not.py."""

from typing import Any, Dict, List, Tuple

BACKEND: Dict[str, Any]
def explain(plan: Dict[str, Any], statuses: Dict[str, Any],
            missing: List[str]) -> List[Tuple[str, str]]: ...
