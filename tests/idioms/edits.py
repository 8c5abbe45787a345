"""What programs do with gradients between backward() and step()."""

from __future__ import annotations

from writer import CLEARS, LOCAL, MIXED, REWRITTEN, Writer

EDITS = (
    "for p in present(optimizers): p.grad.mul_(0.5)",
    "for p in present(optimizers): p.grad = p.grad * 0.5",
    "for p in dense(optimizers): p.grad.data = p.grad.data * 0.5",
    "for p in dense(optimizers): p.grad.set_(p.grad * 0.5)",
    "for p in present(optimizers): p.grad = p.grad.clone()",
    "model.one.weight.grad, model.two.weight.grad = model.two.weight.grad, model.one.weight.grad",
    "for p in dense(optimizers)[:2]: p.grad.detach_().mul_(2)",
    "for p in dense(optimizers): p.grad = transposed(p.grad)",
    "for p in dense(optimizers): p.grad.data = transposed(p.grad.data)",
    "for p in dense(optimizers): p.grad.add_(p.detach(), alpha=0.01)",
    "for p in dense(optimizers): p.grad.copy_(p.grad.sign() * 0.01)",
    "for p in parameters(optimizers): p.grad = torch.full_like(p, 0.01)",
)
LINEAR = 9  # the first so many of them can be done to local gradients, too
CLIPS = (
    "nn.utils.clip_grad_norm_(dense(optimizers), 0.05)",
    "nn.utils.clip_grad_value_(dense(optimizers), 0.01)",
)
ASSIGNMENTS = (  # of g, a gradient of this rank's share
    "p.grad = g",
    "p.grad = g if p.grad is None or g is None else p.grad + g",
    "p.grad = None if g is None else g.clone()",
    "p.grad = g if unlike(p.grad, g) else p.grad.copy_(g)",
    "p.grad = g if unlike(p.grad, g) else p.grad.add_(g)",
    "if unlike(p.grad, g): p.grad = g\n        else: p.grad.data = g",
)
ADDING = (1, 4)
REPLACING = (0, 1, 2)  # p.grad is another tensor from then on


class Edits(Writer):
    def do_clear(self, variant: int, batch: int) -> None:
        variant = (0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8)[variant % 13]
        if self.local and variant > 4:
            variant = self.seldom(variant, 0, batch)
        self.clear(5 if self.unlike(CLEARS[variant]) else variant)

    @staticmethod
    def seldom(variant: int, usual: int, batch: int) -> int:
        """What may be an error is written for one batch only, and for others what is none."""
        return usual if batch else variant

    def do_edit(self, variant: int, batch: int) -> None:
        variant %= len(EDITS)
        if not self.holds or (self.local and variant >= LINEAR) or self.unlike(EDITS[variant]):
            return
        if self.program.op == "Sum" and not self.delivered and not self.local:
            return
        if variant == len(EDITS) - 1 and self.program.op == "Sum":
            return
        if self.local:
            variant = self.seldom(variant, 1, batch)
            self.allow(MIXED if self.delivered or self.old else LOCAL)
            self.assigned = True
        elif self.old and not self.delivered:
            self.allow(REWRITTEN)
        self.add(EDITS[variant])

    def do_clip(self, variant: int, batch: int) -> None:
        if not self.holds or (self.program.op == "Sum" and not self.delivered and not self.local):
            return
        clip = CLIPS[variant % 2]
        if self.unlike(clip):
            return
        if self.local and variant % 4 == 3 and self.program.optimizer != "LBFGS":
            self.add("side.synchronize(optimizers)", clip)
            self.add("with side.skip_synchronize(optimizers):", "    for o in optimizers: o.step()")
            self.stepped()
        elif not self.assigned:  # what is clipped after an assignment is this rank's own, and nobody can know
            if self.local and batch:  # seldom: it may be an error
                return
            if self.local:
                self.allow(LOCAL)
            elif self.old and not self.delivered:
                self.allow(REWRITTEN)
            self.add(clip)

    def do_assign(self, variant: int, batch: int) -> None:
        """Gradients of this rank's share, from torch.autograd.grad."""
        variant %= len(ASSIGNMENTS)
        if self.delivered or (self.old and variant in ADDING):
            return
        if variant not in REPLACING and self.local:
            variant = self.seldom(variant, 0, batch)
            self.allow(LOCAL)
        elif variant not in REPLACING and self.old:
            self.allow(REWRITTEN)
        if variant == 0:
            self.let_go()
        self.add(f"for p, g in gradients(side.loss(model, {batch}), optimizers):", f"    {ASSIGNMENTS[variant]}")
        self.views |= variant < 2
        self.used_extra |= not self.joined
        self.holds = self.local = self.assigned = True
        self.zeros = False

    def do_keep(self, variant: int, batch: int) -> None:
        if self.holds:
            what = "p.grad" if variant % 3 else "p.grad[:1] if not p.grad.is_sparse else p.grad"
            self.add(f"side.keep([{what} for p in present(optimizers)])")
            self.keeping = True
