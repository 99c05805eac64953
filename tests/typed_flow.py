"""A flow as a user who checks types would write it: `test_types` has it checked, and runs it."""

import datetime
import functools
from typing import List, Sequence, Tuple

import sequent as seq


class Table:
    """What bound methods and callable objects are of."""

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self, rows: List[int]) -> int:
        return sum(rows)

    def __call__(self) -> str:
        return self.name


def extract(city: str, rows: int = 3) -> List[int]:
    context = seq.current()
    print(context.name, city, context.item)
    return list(range(rows))


def report(day: datetime.date, totals: List[int]) -> Tuple[str, int]:
    return str(day), sum(totals)


def as_date(text: str) -> datetime.date:
    return datetime.datetime.strptime(text, '%Y-%m-%d').date()


class HereConstruct(seq.TaskConstruct):
    """Runs functions where it is itself."""

    inline = True

    def release(self, jobs: Sequence[seq.Job]) -> None:
        for job in jobs:
            outcome = seq.run_job(job)
            self.port.done(job, outcome._replace(warning=''))


def build() -> seq.Sequent:
    day = seq.parameter('day', '2026-11-22', as_date, help='the day to work through')
    rows = seq.parameter('rows', 3)
    line = seq.ResourcePool('line', 1)
    table = Table('temperatures')
    flow = seq.Sequent('typed', store=seq.MemoryStore(), run_mode=seq.RunMode.restart,
                       config={'task_construct': HereConstruct, 'retries': 1})
    city = flow.add_step('city', loop=['Seattle', 'San Francisco'])
    extracted = city.add_step('extract', extract, args=(city.item,), kwargs={'rows': rows})
    loaded = city.add_step('load', func=table.load, args=(extracted.result,),
                           recovery={seq.STEP_SUCCESS: seq.STEP_RERUN})
    named = flow.add_step('name', func=table, config={'timeout': None}, acquires=[(line, 1)])
    ready = flow.add_event((city, (named, seq.STEP_SUCCESS)))
    flow.add_step('report', func=report, args=(day, loaded.result), require=ready)
    either = seq.or_((city, seq.STEP_FAILURE), (named, 'complete'))
    flow.add_step('mail', func=functools.partial(print, 'mail'), require=either, delay=0.01)
    flow.add_step('archive', func=seq.Command(['true'], env={'LANG': 'C'}), require=[city])
    flow.add_step('list', command=['echo', city.path, 1], require=city)
    return flow


def raised_by_hand(eventor: seq.Eventor) -> None:
    begin = eventor.add_event('begin')
    end = eventor.add_event('end')
    step = eventor.add_step('step', func=extract, args=('Seattle',),
                            triggers={seq.STEP_COMPLETE: (end,)})
    eventor.add_assoc(begin, step)
    eventor.trigger_event(begin, 1)


def summary(flow: seq.Sequent) -> List[str]:
    outstanding, due = flow.count_todos()
    assert outstanding == 0 and due is None
    return ['%s: %s' % (task.path, task.status.value) for task in flow.tasks()
            if task.kind == 'leaf' and task.status is seq.TaskStatus.success]


def main() -> int:
    flow = build()
    ok: bool = flow()
    print('\n'.join(summary(flow)))
    with seq.Eventor(store=seq.MemoryStore(), config={'task_construct': 'inline'}) as eventor:
        raised_by_hand(eventor)
        ok = eventor.run() and ok
    return 0 if ok else 1


if __name__ == '__main__':
    raise SystemExit(main())
