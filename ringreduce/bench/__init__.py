"""`ringreduce bench`: how fast ringreduce is on this machine, beside its peers and the limit.

    cli ─► commands ─► launch ─► mpirun ─► every rank: run ─► sweep | hosts | step ─► report (rank 0)
             │                     ▲                               │
             └─► jobs (a training  ┘           measure: A B C A B C ... over contenders
                 step: a job for each mode)

Whatever takes turns does so in one loop, turns.take_turns. A contender is something that can be
timed: a collective by one library. `collectives` is the table of what is compared; adding one is
adding an entry. docs/performance.md explains what is measured and how. What only those who develop
ringreduce measure is in benchmarks/ of the source tree, and stands on this.
"""
