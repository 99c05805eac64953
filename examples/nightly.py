"""A nightly batch on real input: extract twice, join, report, transmit.

    A1 --+
         +--> B --> C1 --> C2
    A2 --+

A1 and A2 extract the hourly temperatures of two cities from files that differ in the order of
their columns and in how they write a date. B joins the hours that both cities have and computes
daily and monthly figures. C1 writes the report, C2 transmits it.

Run it with ``python3 -m sequent examples/nightly.py``. Everything it makes goes to the folder
``nightly.out`` in the current folder (environment variable NIGHTLY_DIR: another one): the
figures (``nightly.db``), the report, what was transmitted (``line/``), and the flow's store.

While the environment variable NIGHTLY_LINE is ``down``, C2 fails. When the line is up again,
``python3 -m sequent examples/nightly.py recover`` transmits the report, and does nothing else.
"""

import collections
import contextlib
import csv
import datetime
import logging
import os
import shutil
import sqlite3

import sequent as seq

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.abspath(os.environ.get('NIGHTLY_DIR', 'nightly.out'))
FIGURES = os.path.join(OUT, 'nightly.db')
REPORT = os.path.join(OUT, 'report.txt')
LINE = os.path.join(OUT, 'line')

City = collections.namedtuple('City', 'table name file date_format')
SEATTLE = City('seattle', 'Seattle', 'seattle-temps.csv', '%Y/%m/%d %H:%M')
SAN_FRANCISCO = City('san_francisco', 'San Francisco', 'sf-temps.csv', '%Y/%m/%d %H:%M:%S')
CITIES = (SEATTLE, SAN_FRANCISCO)

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def transaction():
    """Open the figures and change them as a whole or, on an exception, not at all.

    A step that is run again after it was killed half way finds nothing of its first attempt.
    """
    connection = sqlite3.connect(FIGURES, timeout=60, isolation_level=None)
    with contextlib.closing(connection):
        connection.execute('BEGIN IMMEDIATE')
        yield connection
        connection.execute('COMMIT')


# A1, A2: extract ################################################################


def tenths(text):
    """Return a temperature such as ``'39.4'`` in tenths of a degree, exactly."""
    whole, _, fraction = text.strip().partition('.')
    if len(fraction) > 1:
        raise ValueError('%r is finer than a tenth of a degree' % text)
    return int(whole + (fraction or '0'))


def hours(city):
    """Yield ``('2010-01-01 00:00', tenths)`` for every line of a city's file."""
    path = os.path.join(HERE, 'data', city.file)
    with open(path, newline='') as lines:
        rows = csv.DictReader(lines)
        for row in rows:
            try:
                when = datetime.datetime.strptime(row['date'], city.date_format)
                yield when.strftime('%Y-%m-%d %H:%M'), tenths(row['temp'])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError('%s, line %d: %s' % (path, rows.line_num, error)) from error


def extract(city):
    with transaction() as figures:
        figures.execute('DROP TABLE IF EXISTS %s' % city.table)
        figures.execute('CREATE TABLE %s (hour TEXT PRIMARY KEY, temp INTEGER NOT NULL)'
                        % city.table)
        figures.executemany('INSERT INTO %s VALUES (?, ?)' % city.table, hours(city))
        (count,) = figures.execute('SELECT count(*) FROM %s' % city.table).fetchone()
    logger.info('%s: %d hours extracted', city.name, count)
    return count


# B: join ########################################################################

# One row for each day or month: its hours, then mean, lowest and highest of each city.
SUMMARY = '''
    CREATE TABLE {table} AS
    SELECT substr(hour, 1, {length}) AS {table}, count(*) AS hours,
           avg(seattle) AS seattle_mean, min(seattle) AS seattle_low, max(seattle) AS seattle_high,
           avg(san_francisco) AS san_francisco_mean, min(san_francisco) AS san_francisco_low,
           max(san_francisco) AS san_francisco_high
    FROM joined GROUP BY 1 ORDER BY 1
'''


def join():
    with transaction() as figures:
        for table in ('joined', 'day', 'month', 'year'):
            figures.execute('DROP TABLE IF EXISTS %s' % table)
        figures.execute('CREATE TABLE joined AS SELECT hour, seattle.temp AS seattle, '
                        'san_francisco.temp AS san_francisco '
                        'FROM seattle JOIN san_francisco USING (hour) ORDER BY hour')
        for table, length in (('day', 10), ('month', 7), ('year', 4)):
            figures.execute(SUMMARY.format(table=table, length=length))
        counts = [figures.execute('SELECT count(*) FROM %s' % table).fetchone()[0]
                  for table in ('joined', 'day', 'month')]
    logger.info('%d hours joined, %d days, %d months', *counts)


# C1, C2: report, transmit #######################################################


def missing_hours(joined):
    """Return the hours between the first and the last of sorted ``joined`` that are not there."""
    layout, hour = '%Y-%m-%d %H:%M', datetime.timedelta(hours=1)
    when, last = [datetime.datetime.strptime(joined[n], layout) for n in (0, -1)]
    there, missing = set(joined), []
    while when < last:
        if when.strftime(layout) not in there:
            missing.append(when.strftime(layout))
        when += hour
    return missing


def degrees(amount):
    """Return tenths of a degree as text with one decimal, a half rounded away from 0."""
    rounded = int(abs(amount) + 0.5)
    return '%s%d.%d' % ('-' if amount < 0 and rounded else '', rounded // 10, rounded % 10)


def report_lines(figures):
    """Yield the lines of the report."""
    joined = [hour for hour, in figures.execute('SELECT hour FROM joined ORDER BY hour')]
    extracted = [figures.execute('SELECT count(*) FROM %s' % city.table).fetchone()[0]
                 for city in CITIES]
    yield 'Hourly temperatures in degrees Fahrenheit: Seattle and San Francisco'
    yield ''
    yield 'hours extracted: %d and %d; in both: %d' % (extracted[0], extracted[1], len(joined))
    yield 'hours missing in between: %s' % (', '.join(missing_hours(joined)) or 'none')
    yield ''
    layout = '%-7s %6s | %6s %6s %6s | %6s %6s %6s | %10s'
    yield '%-14s | %-20s | %-20s |' % ('', SEATTLE.name, SAN_FRANCISCO.name)
    yield layout % (('month', 'hours') + ('mean', 'low', 'high') * 2 + ('difference',))
    for table in ('month', 'year'):
        for row in figures.execute('SELECT * FROM %s ORDER BY 1' % table):
            cells = row[:2] + tuple(map(degrees, row[2:])) + (degrees(row[5] - row[2]),)
            yield layout % cells
    yield ''
    for city in CITIES:
        for word, order in (('warmest', 'DESC'), ('coldest', 'ASC')):
            day, mean = figures.execute('SELECT day, {0}_mean FROM day ORDER BY 2 {1}, 1 LIMIT 1'
                                        .format(city.table, order)).fetchone()
            yield '%s day in %s: %s, mean %s' % (word, city.name, day, degrees(mean))


def write_aside(path, text):
    """Write a file so that it is there as a whole or not at all."""
    with open(path + '.tmp', 'w') as file:
        file.write(text)
    os.replace(path + '.tmp', path)


def report():
    with transaction() as figures:
        write_aside(REPORT, '\n'.join(report_lines(figures)) + '\n')
    logger.info('report written: %s', os.path.relpath(REPORT))


def transmit():
    if os.environ.get('NIGHTLY_LINE') == 'down':
        raise ConnectionError('the line is down, nothing was transmitted')
    os.makedirs(LINE, exist_ok=True)
    sent = os.path.join(LINE, os.path.basename(REPORT))
    shutil.copyfile(REPORT, sent + '.tmp')
    os.replace(sent + '.tmp', sent)
    logger.info('transmitted: %s', os.path.relpath(sent))


os.makedirs(OUT, exist_ok=True)
flow = seq.Sequent(store=os.path.join(OUT, 'nightly.run.db'))
a1 = flow.add_step('A1', func=extract, args=(SEATTLE,))
a2 = flow.add_step('A2', func=extract, args=(SAN_FRANCISCO,))
b = flow.add_step('B', func=join, require=(a1, a2))
c1 = flow.add_step('C1', func=report, require=b)
c2 = flow.add_step('C2', func=transmit, require=c1)

if __name__ == '__main__':
    raise SystemExit(0 if flow() else 1)
