"""`ringreduce doctor`: what there is on this machine, and whether each path works.

    facts.py   versions, libraries, MPI, cores, shared memory, limits, GPUs, settings
    checks.py  one small real collective for each path
    show.py    text or JSON

Run alone it looks at one process; under mpirun at every rank, and rank 0 prints. It needs nothing
but what ringreduce itself needs.
"""
