"""`ringreduce bench`: how fast ringreduce is on this machine, beside its peers and the limit.

    cli ──► launch ──► mpirun ──► every rank: job ──► sweep | step | hosts ──► report (rank 0)
     │                  ▲                                 │
     └──► turns ────────┘             measure: A B C A B C ... over contenders
          (training steps: a job for each mode, in turns)

`bench gpu` (gpu*.py) has clocks of its own: the GPU's, and the host's while the GPU is idle.

A contender is something that can be timed: a collective by one library, or a training step
in one mode. `collectives` is the table of what is compared; adding one is adding an entry.
docs/performance.md explains what is measured and how.
"""
