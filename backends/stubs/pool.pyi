"""The types of `sequent.pool`, which is backends/pool.py."""

from concurrent.futures import BrokenExecutor as BrokenExecutor

from . import Job, TaskConstruct

LEAST: float
LOOK_EVERY: float
MOST: int

class PoolConstruct(TaskConstruct):
    def recall(self, job: Job) -> None: ...
    def release(self, job: Job) -> None: ...
