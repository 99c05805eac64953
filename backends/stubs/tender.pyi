"""The names of `sequent.tender`, which is backends/tender.py."""

from typing import Any, Dict

BACKEND: Dict[str, Any]
CAN_START_PROGRAMS: Any
ForkServer: Any
ProgramConstruct: Any
start: Any
