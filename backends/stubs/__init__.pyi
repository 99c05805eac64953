"""The types of what `sequent` has for its users; what it all means is said there.

Type checkers take this file for the types of a `sequent.py` beside which it stands, and of an
installed one, where it is the package `sequent-stubs`. `stubtest` compares the two.
"""

import enum
import logging
import os
from abc import ABC, ABCMeta, abstractmethod
from contextlib import AbstractContextManager
from types import TracebackType
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    NoReturn,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
    TypeVar,
    Union,
    overload,
)

from typing_extensions import Literal, TypeAlias

__all__ = [
    'Sequent', 'Eventor', 'or_', 'current', 'parameter', 'item', 'ResourcePool', 'Command',
    'StepStatus', 'StepState', 'TaskStatus', 'StepReplay', 'RunMode',
    'STEP_READY', 'STEP_ACTIVE', 'STEP_SUCCESS', 'STEP_FAILURE', 'STEP_COMPLETE',
    'STEP_RERUN', 'STEP_SKIP', 'RUN_RESTART', 'RUN_RECOVER', 'RUN_CONTINUE',
    'Store', 'SqliteStore', 'MemoryStore', 'RunRecord', 'TaskRecord',
    'TaskConstruct', 'ProcessConstruct', 'ProgramConstruct', 'ThreadConstruct', 'InlineConstruct',
    'Job', 'Outcome', 'run_job',
    'SequentError', 'FlowError', 'FlowTypeError', 'CycleError', 'ConfigError', 'StoreError',
    'AlreadyRunningError', 'RecoveryError', 'ConstructError', 'ClosedError', 'ParameterError',
    'ProgramError',
    'main',
]

__version__: str
logger: logging.Logger

_T = TypeVar('_T')
_Path: TypeAlias = Union[str, 'os.PathLike[str]']

# 2 Vocabulary ####################################################################

class StepStatus(str, enum.Enum):
    ready = 'ready'
    active = 'active'
    success = 'success'
    failure = 'failure'
    complete = 'complete'

class TaskStatus(str, enum.Enum):
    ready = 'ready'
    active = 'active'
    success = 'success'
    failure = 'failure'

class StepReplay(str, enum.Enum):
    rerun = 'rerun'
    skip = 'skip'

class RunMode(str, enum.Enum):
    restart = 'restart'
    recover = 'recover'
    continue_ = 'continue'

StepState = StepStatus
STEP_READY: Literal[StepStatus.ready]
STEP_ACTIVE: Literal[StepStatus.active]
STEP_SUCCESS: Literal[StepStatus.success]
STEP_FAILURE: Literal[StepStatus.failure]
STEP_COMPLETE: Literal[StepStatus.complete]
STEP_RERUN: Literal[StepReplay.rerun]
STEP_SKIP: Literal[StepReplay.skip]
RUN_RESTART: Literal[RunMode.restart]
RUN_RECOVER: Literal[RunMode.recover]
RUN_CONTINUE: Literal[RunMode.continue_]

class SequentError(Exception): ...
class FlowError(SequentError, ValueError): ...
class FlowTypeError(SequentError, TypeError): ...
class CycleError(FlowError): ...
class ConfigError(SequentError, ValueError): ...
class ConstructError(SequentError, ValueError): ...
class StoreError(SequentError, OSError): ...
class AlreadyRunningError(SequentError, RuntimeError): ...
class RecoveryError(SequentError, LookupError): ...
class ClosedError(SequentError, RuntimeError): ...
class ParameterError(SequentError, ValueError): ...

class ProgramError(SequentError, RuntimeError):
    code: Optional[int]
    def __init__(self, text: str, code: Optional[int] = None) -> None: ...

class RunRecord(NamedTuple):
    flow: str
    run_id: str
    recovery: int = ...
    mode: str = ...
    status: str = ...
    started: Optional[float] = ...
    ended: Optional[float] = ...
    process: str = ...
    steps: str = ...

class TaskRecord(NamedTuple):
    path: str
    sequence: str
    recovery: int
    attempt: int
    kind: str
    status: str
    handled: bool = ...
    item: Optional[bytes] = ...
    due: Optional[float] = ...
    started: Optional[float] = ...
    ended: Optional[float] = ...
    process: Optional[str] = ...
    result: Optional[bytes] = ...
    error: Optional[str] = ...
    events: Optional[str] = ...

class Outcome(NamedTuple):
    status: str
    error: Optional[str] = ...
    trace: str = ...
    result: Optional[bytes] = ...
    warning: str = ...
    interrupted: bool = ...
    ended: Optional[float] = ...
    lost: bool = ...
    exited: bool = ...
    kinds: Tuple[str, ...] = ...
    code: Optional[int] = ...

# 3 Model #########################################################################

class or_:  # noqa: N801 (the documented name)
    operands: Tuple[Any, ...]
    def __init__(self, *operands: _Expression) -> None: ...

class Event:
    flow: Any
    name: str
    require: Any
    def __init__(self, flow: Any, name: str, require: Any) -> None: ...

class ResourcePool:
    name: str
    resource_limit: int
    def __init__(self, name: str, resource_limit: int) -> None: ...

class Step:
    kind: str
    func: Optional[Callable[..., object]]
    loop: Optional[_Loop]
    args: Tuple[Any, ...]
    kwargs: Dict[str, Any]
    delay: float
    acquires: Tuple[Any, ...]
    releases: Optional[Tuple[Any, ...]]
    recovery: Dict[str, str]
    config: Dict[str, Any]
    stop_on_exception: bool
    max_concurrent: Optional[int]
    tolerate: Any
    retries: int
    serial: bool
    queues: bool
    settings: Dict[str, Any]
    asks: Optional[Tuple[Any, ...]]
    flat: bool
    names: Dict[Any, Any]
    flow: Any
    name: str
    path: str
    parent: Optional[Step]
    children: Sequence[Step]
    number: int
    require: Any
    construct: Any
    def __init__(
        self, flow: Any, parent: Optional[Step], name: str, func: Optional[_Function] = None,
        args: Tuple[Any, ...] = (), kwargs: Dict[str, Any] = ..., loop: Optional[_Loop] = None,
        delay: float = 0, acquires: Tuple[Any, ...] = (),
        releases: Optional[Tuple[Any, ...]] = None, recovery: Dict[str, str] = ...,
        config: Dict[str, Any] = ..., stop_on_exception: bool = True,
        max_concurrent: Optional[int] = None, tolerate: Any = None, retries: int = 0) -> None: ...
    @property
    def result(self) -> ResultOf: ...
    @property
    def item(self) -> ItemOf: ...

class Placeholder:
    step: Optional[Step]
    is_placeholder: bool
    def __init__(self, step: Optional[Step]) -> None: ...
    def __str__(self) -> NoReturn: ...
    def __format__(self, spec: str) -> NoReturn: ...
    def __bool__(self) -> NoReturn: ...
    def __copy__(self: _T) -> _T: ...
    def __deepcopy__(self: _T, memo: Any) -> _T: ...

class ResultOf(Placeholder): ...
class ItemOf(Placeholder): ...

item: ItemOf

# What steps are given. A list is of anything: one of steps is none of expressions, for a checker,
# and a sequence of them would let a str pass.
_Status: TypeAlias = Union[StepStatus, TaskStatus, Literal[
    'ready', 'active', 'success', 'failure', 'complete']]
_Replay: TypeAlias = Union[StepReplay, Literal['rerun', 'skip']]
_Expression: TypeAlias = Union[
    Step, Event, or_, Tuple[Step, _Status], Tuple['_Expression', ...], List[Any]]
_Function: TypeAlias = Callable[..., object]    # a `Command` is one, too
_Arguments: TypeAlias = Union[Tuple[Any, ...], List[Any]]
_Loop: TypeAlias = Union[Iterable[Any], Callable[[], Iterable[Any]], Placeholder]
_Amounts: TypeAlias = Union[Tuple[Tuple[ResourcePool, int], ...], List[Tuple[ResourcePool, int]]]
_Config: TypeAlias = Union[Dict[str, Any], _Path]
_Recovery: TypeAlias = Mapping[Any, _Replay]    # of _Status; but keys of mappings are invariant
_CommandLine: TypeAlias = Union[str, Sequence[Union[_Path, float, Placeholder]]]

# 6 Stores ########################################################################

class Store(ABC):
    volatile: bool
    folder: Optional[str]
    logs: Optional[str]
    results: Optional[str]
    users: int
    def open(self, create: bool = True) -> None: ...
    def close(self) -> None: ...
    def private_fds(self) -> List[int]: ...
    @abstractmethod
    def lock(self, flow: str, run_id: str, exclusive: bool = True) -> None: ...
    @abstractmethod
    def unlock(self, flow: str, run_id: str) -> None: ...
    @abstractmethod
    def runs(self, flow: Optional[str] = None) -> Iterable[RunRecord]: ...
    def latest(self, flow: str, run_id: Optional[str] = '') -> Optional[RunRecord]: ...
    @abstractmethod
    def begin(self, run: RunRecord) -> None: ...
    @abstractmethod
    def finish(self, run: RunRecord) -> None: ...
    @abstractmethod
    def commit(self, run: RunRecord, records: Iterable[TaskRecord]) -> None: ...
    def fold(self, run: RunRecord, path: str, sequence: str, kind: str) -> bool: ...
    @abstractmethod
    def outcomes(self, run: RunRecord, sequence: str, upto: int) -> Dict[str, TaskRecord]: ...
    @abstractmethod
    def tasks(self, run: RunRecord, upto: Optional[int] = None,
              status: Optional[str] = None) -> Iterable[TaskRecord]: ...
    @abstractmethod
    def attempts(self, run: RunRecord) -> Iterable[TaskRecord]: ...
    def counts(self, run: RunRecord) -> List[Tuple[str, str, str, int]]: ...
    def summary(self, run: RunRecord, upto: Optional[int] = None) -> List[StepSummary]: ...

class StepSummary:
    path: str
    kind: str
    counts: Dict[str, int]
    started: Optional[float]
    ended: Optional[float]
    def __init__(self, path: str, kind: str) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def records(self) -> List[TaskRecord]: ...
    def count(self, status: str, n: int, started: Optional[float],
              ended: Optional[float]) -> None: ...
    def show(self, record: TaskRecord) -> None: ...

class MemoryStore(Store):
    def __init__(self, volatile: bool = False) -> None: ...
    def lock(self, flow: str, run_id: str, exclusive: bool = True) -> None: ...
    def unlock(self, flow: str, run_id: str) -> None: ...
    def runs(self, flow: Optional[str] = None) -> Iterator[RunRecord]: ...
    def begin(self, run: RunRecord) -> None: ...
    def finish(self, run: RunRecord) -> None: ...
    def commit(self, run: RunRecord, records: Iterable[TaskRecord]) -> None: ...
    def outcomes(self, run: RunRecord, sequence: str, upto: int) -> Dict[str, TaskRecord]: ...
    def tasks(self, run: RunRecord, upto: Optional[int] = None,
              status: Optional[str] = None) -> Iterator[TaskRecord]: ...
    def attempts(self, run: RunRecord) -> Iterator[TaskRecord]: ...

class SqliteStore(Store):
    path: str
    synchronous: str
    def __init__(self, path: _Path,
                 synchronous: Literal['full', 'normal', 'off'] = 'full') -> None: ...
    def lock(self, flow: str, run_id: str, exclusive: bool = True) -> None: ...
    def unlock(self, flow: str, run_id: str) -> None: ...
    def runs(self, flow: Optional[str] = None) -> Iterator[RunRecord]: ...
    def begin(self, run: RunRecord) -> None: ...
    def finish(self, run: RunRecord) -> None: ...
    def commit(self, run: RunRecord, records: Iterable[TaskRecord]) -> None: ...
    def outcomes(self, run: RunRecord, sequence: str, upto: int) -> Dict[str, TaskRecord]: ...
    def tasks(self, run: RunRecord, upto: Optional[int] = None,
              status: Optional[str] = None) -> Iterator[TaskRecord]: ...
    def attempts(self, run: RunRecord) -> Iterator[TaskRecord]: ...

# 7 Constructs ####################################################################

class Job:
    name: str
    sequence: str
    recovery: int
    attempt: int
    flow: str
    run_id: str
    func: Optional[_Function]
    args: Sequence[Any]
    kwargs: Dict[str, Any]
    items: Sequence[Any]
    own: Dict[str, str]
    shared: Dict[str, str]
    config: Dict[str, Any]
    logdir: Optional[str]
    outcome: Optional[str]
    logger_name: str
    eventor: Any
    task: Any
    triggered: Tuple[Any, ...]
    process: Optional[str]
    state: Any
    epoch: Optional[float]
    began: Optional[float]
    def __init__(
        self, name: str, sequence: str = '1', recovery: int = 0, attempt: int = 1, flow: str = '',
        run_id: str = '', func: Optional[_Function] = None, args: Sequence[Any] = (),
        kwargs: Optional[Dict[str, Any]] = None, items: Sequence[Any] = (),
        env: Optional[Dict[str, str]] = None, config: Optional[Dict[str, Any]] = None,
        log: Optional[str] = None, outcome: Optional[str] = None, logger_name: str = '',
        eventor: Any = None, task: Any = None, process: Optional[str] = None,
        shared: Optional[Dict[str, str]] = None, logdir: Optional[str] = None,
        epoch: Optional[float] = None) -> None: ...
    @property
    def env(self) -> Dict[str, str]: ...
    def now(self) -> float: ...
    @property
    def log(self) -> Optional[str]: ...
    @log.setter
    def log(self, path: Optional[str]) -> None: ...

class Port(ABC):
    stopping: bool
    config: Dict[str, Any]
    forks: Any
    volatile: bool
    @abstractmethod
    def done(self, job: Job, outcome: Outcome) -> None: ...
    @abstractmethod
    def watch(self, fd: int, callback: Callable[[], object]) -> None: ...
    @abstractmethod
    def unwatch(self, fd: int) -> None: ...
    def moved(self, job: Job) -> None: ...
    def private_fds(self) -> List[int]: ...

class TaskConstruct(ABC):
    can_kill: bool
    can_adopt: bool
    can_place: bool
    relays: bool
    inline: bool
    queues: bool
    port: Port
    @property
    def slots(self) -> int: ...
    @property
    def ahead(self) -> int: ...
    @property
    def polls(self) -> bool: ...
    def open(self, port: Port) -> None: ...
    def check(self, name: str, func: _Function, args: Sequence[Any], kwargs: Mapping[str, Any],
              config: Mapping[str, Any]) -> None: ...
    def prepare(self, job: Job) -> None: ...
    @abstractmethod
    def release(self, job: Job) -> None: ...
    def withdraw(self, job: Job) -> None: ...
    def settle(self, job: Job) -> None: ...
    def kill(self, job: Job, force: bool) -> None: ...
    def recall(self, job: Job) -> None: ...
    def adopt(self, job: Job) -> bool: ...
    def pids(self, job: Job) -> List[int]: ...
    def poll(self) -> None: ...
    def close(self) -> None: ...

class InlineConstruct(TaskConstruct):
    def release(self, job: Job) -> None: ...

class ThreadConstruct(TaskConstruct):
    def release(self, job: Job) -> None: ...

class _ChildConstruct(TaskConstruct, metaclass=ABCMeta): ...

class ProcessConstruct(_ChildConstruct):
    def release(self, job: Job) -> None: ...

class ProgramConstruct(_ChildConstruct):
    def release(self, job: Job) -> None: ...

class Context(NamedTuple):
    name: str
    sequence: str
    recovery: int
    attempt: int
    run_id: str
    flow: str
    items: Tuple[Any, ...]
    item: Any
    logger_name: str

def current() -> Context: ...
def run_job(job: Job, **more: Any) -> Outcome: ...

class Command:
    parts: Tuple[Any, ...]
    cwd: Optional[str]
    env: Dict[str, Optional[str]]
    shell: bool
    ok: Any
    stdin: Optional[str]
    def __init__(self, command: _CommandLine, cwd: Optional[_Path] = None,
                 env: Optional[Mapping[str, Optional[str]]] = None, shell: bool = False,
                 ok: Collection[int] = (0,), stdin: Optional[_Path] = None) -> None: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...
    def __call__(self) -> int: ...
    def names(self) -> Set[Tuple[str, str]]: ...
    def placeholders(self) -> List[Placeholder]: ...
    def filled(self, lookup: Callable[[str, str], object],
               replace: Callable[[Placeholder], object]) -> Command: ...
    def argv(self) -> List[str]: ...

# For those who write backends.
def install_logging(level: Union[int, str]) -> None: ...
def pack_parameters() -> Any: ...
def take_parameters(packed: Any) -> None: ...

# 9 Facades #######################################################################

@overload
def parameter(name: str, *, type: None = None, help: str = '', secret: bool = False) -> str: ...
@overload
def parameter(name: str, *, type: Callable[[str], _T], help: str = '',
              secret: bool = False) -> _T: ...
@overload
def parameter(name: str, default: None, type: None = None, help: str = '',
              secret: bool = False) -> Optional[str]: ...
@overload
def parameter(name: str, default: None, type: Callable[[str], _T], help: str = '',
              secret: bool = False) -> Optional[_T]: ...
@overload
def parameter(name: str, default: _T, type: None = None, help: str = '',
              secret: bool = False) -> _T: ...
@overload
def parameter(name: str, default: Any, type: Callable[[str], _T], help: str = '',
              secret: bool = False) -> _T: ...

class FlowStep(Step):
    def add_step(
        self, name: str, func: Optional[_Function] = None, args: _Arguments = (),
        kwargs: Dict[str, Any] = {}, *more: NoReturn, loop: Optional[_Loop] = None,
        require: Optional[_Expression] = (), delay: float = 0, acquires: _Amounts = (),
        releases: Optional[_Amounts] = None, recovery: _Recovery = {}, config: _Config = {},
        command: Union[_CommandLine, Command, None] = None, repeat: Optional[_Loop] = ...,
        repeats: Optional[_Loop] = ..., requires: Optional[_Expression] = ...) -> FlowStep: ...
    def add_event(self, require: Optional[_Expression] = None) -> Event: ...

class TaskInfo(NamedTuple):
    path: str
    sequence: str
    kind: str
    status: TaskStatus
    recovery: int
    attempt: int
    start: Optional[float]
    end: Optional[float]
    error: Optional[str]
    handled: bool
    result: Any

_Mode: TypeAlias = Union[RunMode, Literal['restart', 'recover', 'continue']]
_Store: TypeAlias = Union[_Path, Store, Type[Store], None]

class _Flow(ABC):
    name: str
    run_id: str
    run_mode: RunMode
    recovery_run: Optional[int]
    logging_level: Union[int, str]
    store: Optional[Store]
    def __init__(
        self, name: str, store: _Store, run_mode: _Mode, recovery_run: Optional[int],
        run_id: Optional[str], logging_level: Union[int, str], config: _Config,
        config_tag: str) -> None: ...
    def __enter__(self: _T) -> _T: ...
    def __exit__(self, kind: Optional[Type[BaseException]] = ...,
                 error: Optional[BaseException] = ...,
                 trace: Optional[TracebackType] = ...) -> None: ...
    def __call__(self, max_loops: int = -1) -> bool: ...
    def run(self, max_loops: int = -1) -> bool: ...
    def close(self) -> None: ...
    def compile(self) -> Any: ...
    def settings(self) -> Dict[str, Any]: ...
    def dry_run(self) -> AbstractContextManager[Any]: ...
    def tasks(self) -> List[TaskInfo]: ...
    def count_todos(self) -> Tuple[int, Optional[float]]: ...
    def get_step_name(self) -> str: ...
    def get_step_sequence(self) -> str: ...
    def open_store(self, create: bool = True) -> Store: ...
    def close_store(self) -> None: ...
    def count_sequence(self, event: str, sequence: str) -> None: ...
    def log_warnings(self) -> None: ...
    def override(
        self, store: _Store = None, run_mode: Union[RunMode, str, None] = None,
        run_id: Optional[str] = None, recovery_run: Optional[int] = None,
        logging_level: Union[int, str, None] = None,
        config: Optional[Dict[str, Any]] = None) -> None: ...

class Sequent(_Flow):
    def __init__(
        self, name: str = '', store: _Store = '',
        run_mode: _Mode = ...,
        recovery_run: Optional[int] = None, run_id: Optional[str] = '',
        logging_level: Union[int, str] = ..., config: _Config = {},
        config_tag: str = '') -> None: ...
    def add_step(
        self, name: str, func: Optional[_Function] = None, args: _Arguments = (),
        kwargs: Dict[str, Any] = {}, *more: NoReturn, loop: Optional[_Loop] = None,
        require: Optional[_Expression] = (), delay: float = 0, acquires: _Amounts = (),
        releases: Optional[_Amounts] = None, recovery: _Recovery = {}, config: _Config = {},
        command: Union[_CommandLine, Command, None] = None, repeat: Optional[_Loop] = ...,
        repeats: Optional[_Loop] = ..., requires: Optional[_Expression] = ...) -> FlowStep: ...
    def add_event(self, require: Optional[_Expression] = None) -> Event: ...

_Raised: TypeAlias = Union[Event, Sequence[Event]]

class Eventor(_Flow):
    def __init__(
        self, name: str = '', store: _Store = '',
        run_mode: _Mode = ...,
        recovery_run: Optional[int] = None, logging_level: Union[int, str] = ...,
        config: _Config = {}, run_id: Optional[str] = '', config_tag: str = '') -> None: ...
    def add_event(self, name: str, expr: Optional[_Expression] = None) -> Event: ...
    def add_step(
        self, name: str, func: Optional[_Function] = None, args: _Arguments = (),
        kwargs: Dict[str, Any] = {}, triggers: Mapping[Any, _Raised] = {},
        recovery: _Recovery = {}, config: _Config = {}, acquires: _Amounts = (),
        releases: Optional[_Amounts] = None,
        command: Union[_CommandLine, Command, None] = None) -> Step: ...
    def add_assoc(self, event: Event, *assocs: Union[Event, Step], delay: float = 0) -> None: ...
    def trigger_event(self, event: Event, sequence: object = None) -> None: ...

# 10 Command line #################################################################

def main(argv: Optional[Sequence[str]] = None) -> int: ...
