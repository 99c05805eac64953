"""A night that tells when something fails, and ends with exit code 1 all the same.

    night: extract --> load      mail:   runs when load failed
    report: runs when the night as a whole failed

``mail`` and ``report`` are reactions. They run because of a failure, although that failure stops
everything else, and they do not make it good. ``python3 -m sequent examples/mail.py recover`` runs
what failed again; if it fails again, both are sent again.

Run it with ``python3 -m sequent examples/mail.py``. While the environment variable LINE is
``down``, load fails. What would be mailed is written to ``outbox.txt`` in the current folder.
"""

import os

import sequent as seq


def extract():
    return ['row %d' % number for number in range(1000)]


def load(rows):
    if os.environ.get('LINE') == 'down':
        raise ConnectionError('the line is down')
    return len(rows)


def send(subject):
    """Write a mail; with a mail server on the host, smtplib would send it."""
    now = seq.current()
    with open('outbox.txt', 'a') as outbox:
        outbox.write('%s (%d)\n' % (subject, now.failure_count))
        for path, sequence, error in now.failures:
            outbox.write('  %s at %s: %s\n' % (path, sequence, error))


flow = seq.Sequent()
night = flow.add_step('night')
extracted = night.add_step('extract', func=extract)
loaded = night.add_step('load', func=load, args=(extracted.result,))
night.add_step('mail', func=send, args=('loading failed',), require=((loaded, seq.STEP_FAILURE),))
flow.add_step('report', func=send, args=('the night failed',),
              require=((night, seq.STEP_FAILURE),))

if __name__ == '__main__':
    raise SystemExit(0 if flow() else 1)
