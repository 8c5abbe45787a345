"""Backward passes of all kinds, and those that fail."""

from __future__ import annotations

from net import BATCHES
from writer import Writer

GRAPH = "backward(create_graph=True)"
REENTRANT = "parameters shared between reentrant checkpoints"


class Passes(Writer):
    def do_backward(self, variant: int, batch: int) -> None:
        variant %= 12
        self.before_pass(batch)
        if variant == 2 and batch and any("register_post_accumulate_grad_hook" in line for line in self.lines):
            variant = 0
        times = 2 if variant == 2 else 1
        if self.program.passes > 1 and self.count + times > self.program.passes and variant != 1:
            return
        loss = f"side.loss(model, {batch})"
        if variant == 1:
            self.add(f"with side.no_sync(optimizers): {loss}.backward()")
        elif variant == 2:
            self.add(f"loss = {loss}", "loss.backward(retain_graph=True)", "(2 * loss).backward()")
        elif variant == 3:
            self.add(f"{loss}.backward(inputs=list(model.last.parameters()))")
        elif variant == 4:
            self.add(f"side.loss(model, {batch}, half=True).backward()")
        elif variant == 5:
            self.add(f"torch.autograd.backward([{loss}, side.loss(model, {(batch + 1) % BATCHES})])")
        elif variant == 6:
            if "tied" in self.program.features:
                self.allow(REENTRANT)
            self.add(f"side.loss(model, {batch}, reentrant=True).backward()")
        elif variant == 7:
            self.views = True
            self.add(
                f"inner = lambda: side.loss(model, {(batch + 1) % BATCHES}, half=True).backward()",
                f"side.loss(model, {batch}, inside=inner).backward()",
            )
        elif variant == 8:
            self.add(f"torch.autograd.grad({loss}, [model.last.weight])", f"{loss}.backward()")
        elif variant == 9 and batch == 0:
            self.views = True
            self.allow(GRAPH)
            self.add(f"{loss}.backward(create_graph=True)")
        else:
            self.add(f"{loss}.backward()")
        self.passed(times, held=variant == 1)
        self.look()

    def do_raise(self, variant: int, batch: int) -> None:
        """An exception on all ranks; then gradients are cleared, or simply the next pass starts anew."""
        self.before_pass(batch)
        place, after = 1 + variant % 3, variant // 3 % 5
        if self.frozen:
            place = 1  # elsewhere there may be no graph
        if self.program.passes > 1 and self.count >= self.program.passes:
            return
        if after == 4 and (self.holds or self.zeros or not self.exact or self.keeping):
            after = 0
        held = variant % 4 == 3
        self.add(
            f"with caught(){', side.no_sync(optimizers)' * held}:",
            f"    side.loss(model, {batch}, raising={place}).backward()",
        )
        self.used_extra |= not self.joined
        self.exact = self.exact and self.program.passes == 1
        if after < 4:
            self.clear((0, 2, 3, 4)[after])
        else:
            self.add("side.start_anew(optimizers)")
            self.do_backward(0, (batch + 1) % BATCHES)
