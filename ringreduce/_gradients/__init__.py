"""What an optimizer's ranks exchange: from autograd to p.grad, and to the step.

A file imports from those below it only (`tests/single/test_layers.py`):

    averaging                    local_sgd     exchanges: gradients before the step; parameters after it
    backward_pass                    │         gradients come one by one, and then the pass ends, or fails
    step                             │         what is reduced for a step: launched, waited for
    planning   group   phases        │         the plan of an optimizer; its passes, counted; the table of phases
    agreement                        │         what the ranks agree on before there is a plan
    plan                             │         the buckets of a step, launched in order
    exchange   ◄─────────────────────┘         the seam: all that DistributedOptimizer knows of any of them
    rest   sparse                              gradients that no bucket took along; that are gathered
    arena   gpu_memory                         the buckets' memory: shared by the ranks of a host; on a GPU
    drift*                                     whether all ranks still have the same parameters
    parameters   refusals                      slots and hooks of an optimizer; what a program may not do
    hooks   edits   delivery                   of one slot: called; what was done to p.grad; into the bucket and out
    slot                                       one parameter: whose its gradient is
    backward                                   notices that a backward pass ends, or fails
    layout   marks   holders                   which gradient goes where, what travels beside, what is still held
    options   names   channels                 arguments; names and numbers that are the same on all ranks

docs/gradients.md has the rules, and a table of what happens when.
"""
