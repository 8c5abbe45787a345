"""The gradients of DistributedOptimizer, from autograd to p.grad.

    backward.py     notices that a backward pass ends, or fails
    hooks.py        on each parameter, before and after a gradient is accumulated
    parameters.py   slots and hooks of an optimizer's parameters
    refusals.py     what a program may not do, and what it is told
    reducer.py      the phases of a step: what happens to gradients, and when
    slot.py         one parameter: whose its gradient is, and where it lies
    plan.py         the buckets of a step, launched in order
    arena.py        their memory on the CPU: shared by the ranks of a host
    gpu_memory.py   their memory on a GPU
    layout.py       which gradient goes where (pure functions)
    marks.py        what travels beside the gradients in the last bucket
    agreement.py    what the ranks agree on before there is a plan
    channels.py     numbers for messages between hosts
    rest.py         gradients that no bucket took along
    sparse.py       gradients that are gathered
    drift*.py       whether all ranks still have the same parameters
    holders.py      whether the program still holds what was handed out
    names.py        names of optimizers, the same on all ranks
    options.py      arguments of DistributedOptimizer

docs/gradients.md has the rules, and a table of what happens when.
"""
