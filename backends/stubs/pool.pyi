"""The types of `sequent.pool`, which is backends/pool.py."""

from concurrent.futures import BrokenExecutor as BrokenExecutor
from typing import Any, Dict, Sequence

from . import Job, TaskConstruct

BACKEND: Dict[str, Any]
LEAST: float
LOOK_EVERY: float
MOST: int

class PoolConstruct(TaskConstruct):
    def recall(self, job: Job) -> None: ...
    def release(self, jobs: Sequence[Job]) -> None: ...
