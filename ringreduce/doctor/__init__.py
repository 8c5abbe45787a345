"""`ringreduce doctor`: what there is on this machine, and whether each path works.

    needs.py        what must be installed, and is not
    facts.py        versions, libraries, MPI, cores, shared memory, limits, GPUs, settings
    checks.py       one small real collective for each path
    examination.py  facts and checks, where what is needed is there
    show.py         text or JSON

Run alone it looks at one process; under mpirun at every rank, and rank 0 prints. Where torch or
anything else is missing it says so, with Python's own library alone.
"""
