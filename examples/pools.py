"""Resource pools: eight jobs share two tape drives and three licences.

Nothing but the pools limits how many jobs run at a time. A job starts when all it asks for is
free, the one that has waited longest first, and gives it back at its end. The jobs that ask for
both drives run alone on them.

Run it with ``python3 -m sequent examples/pools.py``; ``status`` after it shows who ran when.
Run as a program, it also says how much of each pool was in use at the busiest moment.
"""

import time

import sequent as seq

drives = seq.ResourcePool('tape drives', 2)
licences = seq.ResourcePool('licences', 3)

#: What each job asks for: drives, licences.
JOBS = {
    'ledger': (1, 1), 'payroll': (1, 2), 'backup': (2, 0), 'orders': (1, 1),
    'stock': (1, 1), 'archive': (2, 1), 'prices': (0, 2), 'invoices': (0, 1),
}


def work(name):
    print('%s begins' % name)
    time.sleep(0.1)
    print('%s ends' % name)


def busiest(tasks, position):
    """Return the highest sum of what the jobs that ran at one time had asked for."""
    moments = sorted((when, change * JOBS[task.path][position]) for task in tasks
                     for when, change in ((task.start, 1), (task.end, -1)))
    in_use = highest = 0
    for _, change in moments:
        in_use += change
        highest = max(highest, in_use)
    return highest


flow = seq.Sequent(config={'max_concurrent': 0})
for job, wanted in sorted(JOBS.items()):
    pools = [(pool, n) for pool, n in zip((drives, licences), wanted) if n]
    flow.add_step(job, func=work, args=(job,), acquires=pools)

if __name__ == '__main__':
    ok = flow()
    for number, pool in enumerate((drives, licences)):
        print('%s: %d of %d in use at the busiest moment'
              % (pool.name, busiest(flow.tasks(), number), pool.resource_limit))
    raise SystemExit(0 if ok else 1)
