"""Steps: plain, with a closure, with a GradScaler."""

from __future__ import annotations

from edits import CLIPS
from net import BATCHES
from writer import LOCAL, Writer


class Steps(Writer):
    def do_step(self, variant: int, batch: int) -> None:
        variant %= 8
        if self.program.optimizer == "LBFGS":
            variant = 7 if variant > 4 and not self.delivered else 6
        if variant < 5:
            self.add("for o in optimizers: o.step()")
            return self.stepped()
        if variant == 7 and self.delivered:
            variant = 6
        # step() reduces what is local in p.grad, and runs hooks, before it calls the closure, which clears it.
        if self.local or any("register_step_pre_hook" in line for line in self.lines):
            self.add("side.forget()")
            self.keeping = False
        self.let_go()
        self.add("def closure():", "    for o in optimizers: o.zero_grad()", f"    loss = side.loss(model, {batch})")
        if variant == 7:
            self.views = True
            self.add("    for p, g in gradients(loss, optimizers): p.grad = g")
        else:
            self.add("    loss.backward()")
        self.add("    return loss")
        if self.program.two and self.program.optimizer != "LBFGS":
            self.add("closure()", "for o in optimizers: o.step()")
        else:
            self.add("side.note(optimizers[0].step(closure))")
        self.holds = True
        return self.stepped()

    def do_scaler(self, variant: int, batch: int) -> None:
        if self.program.optimizer == "LBFGS" or self.frozen:
            return
        inf, clip, short = variant % 3 == 0, variant // 3 % 2, variant // 6 % 4 == 0
        self.clear(0)
        if not self.scaling:
            self.add('scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)')
            self.scaling = True
        passes = 1 if short else self.program.passes
        for i in range(passes):
            how = ", inf=True" if inf and i == 0 else ""
            self.add(f"scaler.scale(side.loss(model, {(batch + i) % BATCHES}{how})).backward()")
        self.passed(passes)
        if self.local:
            self.allow(LOCAL)
        self.add("for o in optimizers: scaler.unscale_(o)")
        if clip and not inf and not self.unlike(CLIPS[0]):
            self.add(CLIPS[0])
        self.add("for o in optimizers: scaler.step(o)", "scaler.update()")
        if inf:
            self.clear(0)
        else:
            self.stepped()
