"""The names of `sequent.module_help`, which is backends/module_help.py."""

from typing import Any, Callable, Dict, Mapping

BACKEND: Dict[str, Any]
def show(load: Callable[[], Any], module: str, declared: Mapping[str, Any],
         say: Callable[..., None]) -> None: ...
