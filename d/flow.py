import sequent as seq
flow = seq.Sequent(config={'stop_on_exception': False})
lp = flow.add_step('lp', loop=["it's plain", "$(touch PWNED; echo ran)"])
lp.add_step('s', func=seq.Command('cat <<END\nfile {lp.item}\nEND\n', shell=True))
lq = flow.add_step('lq', loop=["x\ntouch PWNED2\n"])
lq.add_step('s', func=seq.Command('echo done # {lq.item}\necho ok', shell=True))
