"""The types of `sequent.pool`, which is backends/pool.py."""

from . import Job, TaskConstruct

class PoolConstruct(TaskConstruct):
    def recall(self, job: Job) -> None: ...
    def release(self, job: Job) -> None: ...
