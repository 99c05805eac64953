"""Work through a year again, month by month, several months at a time.

    months --> month, a loop over what months found --> report
                 figures --> read

The parameter ``year`` says which one. For each of its months that the data have, awk, a program
like any other, computes the figures of two cities, with a timeout and another try; at the end
``report`` makes a table of them.

Run it with ``python3 -m sequent examples/backfill.py --set year=2010``. What it makes goes to the
folder ``backfill.out`` in the current folder (environment variable BACKFILL_DIR: another one).
"""

import csv
import os

import sequent as seq

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.abspath(os.environ.get('BACKFILL_DIR', 'backfill.out'))
SEATTLE, SAN_FRANCISCO = [os.path.join(HERE, 'data', name)
                          for name in ('seattle-temps.csv', 'sf-temps.csv')]

# The columns of the two files are not in the same order.
FIGURES = '''
    awk -F, -v month={year}/{month.item} '
        FNR == 1 { for (n = 1; n <= NF; n++) column[$n] = n; next }
        index($column["date"], month) == 1 { hours[FILENAME]++; sum[FILENAME] += $column["temp"] }
        END {
            for (n = 1; n < ARGC; n++) {
                if (!hours[ARGV[n]]) { print "no hour of " month > "/dev/stderr"; exit 3 }
                printf "%d %.1f\\n", hours[ARGV[n]], sum[ARGV[n]] / hours[ARGV[n]]
            }
        }
    ' "$SEATTLE" "$SAN_FRANCISCO" > {year}-{month.item}.txt
'''

year = seq.parameter('year', default=2010, help='the year to work through')


def find_months(year):
    """Return the months of a year of which there are data: '01', '02' ..."""
    with open(SEATTLE, newline='') as lines:
        dates = [row['date'].split('/') for row in csv.DictReader(lines)]
    months = sorted({date[1] for date in dates if date[0] == str(year)})
    if not months:
        raise ValueError('there are no data of the year %d' % year)
    return months


def read(year, month):
    """Return (month, hours and mean of Seattle, hours and mean of San Francisco)."""
    with open(os.path.join(OUT, '%d-%s.txt' % (year, month))) as lines:
        return [month] + [text for line in lines for text in line.split()]


def report(year, months):
    with open(os.path.join(OUT, 'report-%d.txt' % year), 'w') as file:
        file.write('mean temperatures of %d: Seattle, San Francisco\n' % year)
        for month, _, seattle, _, san_francisco in months:
            file.write('%s  %6s %6s\n' % (month, seattle, san_francisco))
    return len(months)


os.makedirs(OUT, exist_ok=True)
flow = seq.Sequent(store=os.path.join(OUT, 'backfill.run.db'))
months = flow.add_step('months', func=find_months, args=(year,))
month = flow.add_step('month', loop=months.result, config={'max_concurrent': 4})
figures = month.add_step(
    'figures', func=seq.Command(FIGURES, shell=True, cwd=OUT,
                                env={'SEATTLE': SEATTLE, 'SAN_FRANCISCO': SAN_FRANCISCO}),
    config={'timeout': 60, 'retries': 2, 'retry_delay': [1, 10]})
figures_read = month.add_step('read', func=read, args=(year, month.item), require=figures)
flow.add_step('report', func=report, args=(year, figures_read.result))

if __name__ == '__main__':
    raise SystemExit(0 if flow() else 1)
