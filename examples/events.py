"""Events, the layer below flows: three rounds of fetching, packing and shipping.

    begin ---> fetch --success--> fetched --0.2 s--> shipped ---> ship
      `------> pack  --success--> packed
    fetched and packed = stocked ---> again --triggers--> begin, at the next sequence

What is raised by an event carries its sequence, so each round is a sequence of its own. The loop
is made by hand: ``again`` runs inside the supervisor (``'inline'``), looks at its sequence, and
triggers ``begin`` at the next one.

Run it with ``python3 -m sequent examples/events.py``.
"""
import sequent as seq

ROUNDS = 3


def work(verb):
    print('round %s: %s' % (seq.current().sequence, verb))


def again(eventor):
    done = int(seq.current().sequence)
    if done < ROUNDS:
        eventor.trigger_event(begin, done + 1)


flow = seq.Eventor(config={'max_concurrent': 2})

begin = flow.add_event('begin')
fetched = flow.add_event('fetched')
packed = flow.add_event('packed')
shipped = flow.add_event('shipped')
stocked = flow.add_event('stocked', expr=(fetched, packed))

fetch = flow.add_step('fetch', func=work, args=('fetch',),
                      triggers={seq.STEP_SUCCESS: (fetched,)})
pack = flow.add_step('pack', func=work, args=('pack',),
                     triggers={seq.STEP_SUCCESS: (packed,)})
ship = flow.add_step('ship', func=work, args=('ship',))
next_round = flow.add_step('again', func=again, config={'task_construct': 'inline'})

flow.add_assoc(begin, fetch, pack)
flow.add_assoc(stocked, next_round)
flow.add_assoc(fetched, shipped, delay=0.2)
flow.add_assoc(shipped, ship)

flow.trigger_event(begin, 1)

if __name__ == '__main__':
    raise SystemExit(0 if flow() else 1)
