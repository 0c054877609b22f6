"""What comeapi.py plans, starts and watches: backends and a balancer. Files in reading order:

    plan.py         how many backends, slots and threads fit this machine
    launch.py       their command lines, environments and keys
    child.py        one process: its announcements, its signs of life, its last words
    ladder.py       what is left of a backend that can't run as configured
    ladders.py      where the backends stand, why they died, and what is told of it
    supervisor.py   what is started again, and when
    rolling.py      all backends restarted, one after another
    holder.py       what outlives a balancer that is killed: connections, and notes of the answers on their way
    console.py      what is shown: lines, and some below them
    dashboard.py    what stands in those below: how far models are loaded, how the service is

Glossary:

    child       a process that comeapi.py has started
    hopeless    a child that can't work, as it is started; it is not started again before something serves
    rung        what a backend is started with after it lacked memory, or crashed
    safe mode   slower, without the processor's instructions that some virtual machines promise and do not have
    settled     a child that is ready, waits for its model file, or died: nothing more to wait for at start
"""
