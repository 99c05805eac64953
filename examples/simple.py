"""Nested loops: every day, every city is extracted and checked, then the day is reported.

Run it with ``python3 -m sequent examples/simple.py``, or as a program where sequent is installed
or lies beside it: ``python3 simple.py``.
"""
import sequent as seq


def work(verb):
    print(verb, *seq.current().items)


flow = seq.Sequent()
day = flow.add_step('day', loop=['Monday', 'Tuesday'])
city = day.add_step('city', loop=['Seattle', 'San Francisco'])
extract = city.add_step('extract', func=work, args=('extract',))
city.add_step('check', func=work, args=('check',), require=extract)
day.add_step('report', func=work, args=('report',), require=city)
flow()
