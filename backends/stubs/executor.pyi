"""The types of `sequent.executor`, which is backends/executor.py."""

from concurrent.futures import BrokenExecutor as BrokenExecutor
from concurrent.futures import Executor
from typing import Any, Dict, Optional, Sequence

from . import Job, TaskConstruct

BACKEND: Dict[str, Any]
LOOK_EVERY: float

class ExecutorConstruct(TaskConstruct):
    def __init__(self, executor: Optional[Executor] = None) -> None: ...
    def release(self, jobs: Sequence[Job]) -> None: ...
