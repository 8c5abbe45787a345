"""Writes a program line by line, and knows while it does what the gradients stand for.

    holds      p.grad may have something in it that counts
    local      some of it may not be reduced yet
    delivered  a reduction may have come since the last step
    old        there may be something in it that was delivered before the last step

So an action is written only where the rules say what comes of it, and `allow` notes where they
leave the choice between the right result and an error.
"""

from __future__ import annotations

from program import OPTIMIZERS, Program

LOCAL = "gradients are changed while they are local"
REWRITTEN = "what the last step() has used is written to"
MIXED = "what is changed is partly local, partly reduced"
HOOK = "a post-accumulate hook sees only what a pass adds to a delivered gradient"
LOOK = "side.look(optimizers)"
CLEARS = (
    "for o in optimizers: o.zero_grad()",
    "for o in optimizers: o.zero_grad(set_to_none=False)",
    "model.zero_grad()",
    "for p in model.parameters(): p.grad = None",
    "for p in present(optimizers): del p.grad",
    "for p in present(optimizers): p.grad.zero_()",
    "for p in present(optimizers): p.grad.detach_().zero_()",
    "for p in dense(optimizers): p.grad.data.zero_()",
    "model.zero_grad(set_to_none=False)",
)
TO_NONE = (0, 2, 3, 4)


class Writer:
    """`lines` and `allowed` (from which line on an error is allowed, and why) are what comes of it."""

    def __init__(self, program: Program, double: bool) -> None:
        self.program, self.double = program, double
        self.options = ""
        self.lines: list[str] = []
        self.allowed: dict[int, str] = {}
        self.half = False  # was in bfloat16
        self.single = not double  # is or was in float32
        self.joined = "extra" not in program.features
        self.frozen: set[str] = set()
        self.hooked: set[int] = set()
        self.views = False  # plain torch's gradients may be views, of which it makes no detach_()
        self.scaling = False
        self.used_extra = False
        self.fresh()

    def fresh(self) -> None:
        """No gradients."""
        self.keeping = False
        self.count, self.exact = 0, True  # passes of a group of backward_passes_per_step
        self.holds = self.local = self.delivered = self.old = self.zeros = False
        self.assigned = False  # some of what is local has been assigned

    def add(self, *lines: str) -> None:
        again = any("(2 * loss).backward()" in line for line in lines)
        hooked = any("register_post_accumulate_grad_hook" in line for line in self.lines)
        if hooked and (self.holds or self.zeros or self.old or again):
            self.allow(HOOK)
        self.lines += lines

    def unlike(self, line: str) -> bool:
        """Whether `line` may do something else on the two sides.

        With sparse_as_dense one of them has dense gradients; torch refuses detach_() for gradients that are views.
        """
        program = self.program
        other = "dense(" in line and program.sparse_as_dense and "sparse" in program.features
        return other or ("detach_" in line and self.views)

    def allow(self, why: str) -> None:
        """From the next line on."""
        self.allowed.setdefault(len(self.lines), why)

    def rounding(self) -> float:
        return 5e-2 if self.half else 2e-5 if self.single else 1e-6 if self.program.optimizer == "LBFGS" else 1e-9

    def end(self) -> None:
        self.look()
        self.add("return model, optimizers")

    def look(self) -> None:
        """Reduced gradients are the same on both sides."""
        if self.holds and not self.local and self.lines[-1] != LOOK:
            self.add(LOOK)

    def wrap(self) -> None:
        make = OPTIMIZERS[self.program.optimizer]
        of = "(p for _, p in model.body())" if "extra" in self.program.features else "model.parameters()"
        if not self.program.two or self.program.optimizer == "LBFGS":
            self.add(f"optimizers = [side.wrap({make.format(of)}{self.options})]")
            return
        part = "[p for n, p in model.body() if {}n.endswith('bias')]"
        self.add("optimizers = [")
        for which in ("not ", ""):
            self.add(f"    side.wrap({make.format(part.format(which))}{self.options}),")
        self.add("]")

    def passed(self, times: int = 1, held: bool = False) -> None:
        """So many backward passes have been written."""
        self.holds, self.zeros = True, False
        self.used_extra |= not self.joined
        if held:
            self.local = True
            return
        self.count += times
        if not self.exact:
            self.local = self.delivered = True
        elif self.count == self.program.passes or self.program.passes == 1:
            self.local, self.delivered, self.assigned = False, True, False
        else:
            self.local = True

    def before_pass(self, batch: int) -> None:
        """Where a hook of the program's makes a pass on top of other gradients an error: seldom one."""
        hooked = any("register_post_accumulate_grad_hook" in line for line in self.lines)
        if hooked and batch and (self.holds or self.zeros or self.old):
            self.clear(0)

    def let_go(self) -> None:
        """p.grad is about to be set to None: what was kept of it must stay as it is."""
        if self.keeping:
            self.add("side.let_go()")
        self.keeping = False

    def clear(self, variant: int) -> None:
        """One of CLEARS."""
        if variant in TO_NONE:
            self.let_go()
        if variant > 4 and self.local:
            self.allow(MIXED if self.delivered or self.old else LOCAL)
        self.add(CLEARS[variant])
        if variant in (2, 3, 8):
            self.used_extra = False
        if variant < 2:
            self.count, self.exact = 0, True
        elif self.count:
            self.exact = self.program.passes == 1
        self.zeros = variant not in TO_NONE and (self.holds or self.zeros)
        self.holds = self.local = self.old = self.assigned = False

    def stepped(self) -> None:
        """step() has been written."""
        self.count, self.exact = 0, True
        self.local = self.delivered = self.assigned = False
        self.old = self.holds
        if self.program.op == "Sum" and self.old:  # an old gradient is not known to be a sum
            self.clear(0)
