"""What a random program can do: each action writes its lines, or none where it makes no sense.

What the writer knows of the gradients while it writes:

    holds      p.grad may have something in it that counts
    local      some of it may not be reduced yet
    delivered  a reduction may have come since the last step
    old        there may be something in it that was delivered before the last step
"""

from __future__ import annotations

from program import OPTIMIZERS, Program

LOCAL = "gradients are changed while they are local"
OLDER = "step() of an optimizer whose parameters another one has taken over"
MIXED = "what is changed is partly local, partly reduced"
LOOK = "side.look(optimizers)"
GRAPH = "backward(create_graph=True)"

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
CONVERSIONS = (
    "model.share_memory()",
    "model.to(memory_format=torch.channels_last)",
    "for p in model.parameters(): p.data = p.data.clone()",
    "nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()).detach(), model.parameters())",
    "model.double()",
    "model.float()",
    "model.bfloat16().float()",
)
WEIGHTS = (
    "with torch.no_grad(): model.last.weight.mul_(0.9)",
    "model.one.weight.data = model.one.weight.data * 0.9",
    "with torch.no_grad(): model.last.bias.set_(model.last.bias + 0.1)",
)
HOOKS = (
    "optimizers[0].register_step_post_hook(lambda o, *_: scale(0.9, (p.data for p in parameters([o]))))",
    "optimizers[0].register_step_pre_hook(lambda o, *_: scale(0.5, (p.grad for p in dense([o]))))",
    "model.last.weight.register_hook(lambda g: g * 0.5)",
    "model.last.weight.register_post_accumulate_grad_hook(lambda p: (p.grad.mul_(2), None)[1])",
    'model.last.weight.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", p.grad * 2))',
)


class Writer:
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
        self.scaling = self.edited_in_hook = self.checks = False
        self.used_extra = False
        self.fresh()

    def fresh(self) -> None:
        """No gradients."""
        self.keeping = False
        self.count, self.exact = 0, True  # passes of a group of backward_passes_per_step
        self.holds = self.local = self.delivered = self.old = self.zeros = False

    def add(self, *lines: str) -> None:
        self.lines += lines

    def unlike(self, line: str) -> bool:
        """Whether `line` means other parameters on the two sides: with sparse_as_dense one has dense gradients."""
        return "dense(" in line and self.program.sparse_as_dense and "sparse" in self.program.features

    def allow(self, why: str) -> None:
        """From the next line on."""
        self.allowed.setdefault(len(self.lines), why)

    def rounding(self) -> float:
        return 5e-2 if self.half else 2e-5 if self.single else 1e-6 if self.program.optimizer == "LBFGS" else 1e-9

    def end(self) -> None:
        self.look()
        self.add("return model")

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

    # Backward passes

    def is_last(self) -> bool:
        """Whether the next pass ends a group, as far as is known."""
        return self.count + 1 == self.program.passes

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
            self.local, self.delivered = False, True
        else:
            self.local = True

    def do_backward(self, variant: int, batch: int) -> None:
        variant %= 12
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
            self.add(f"torch.autograd.backward([{loss}, side.loss(model, {(batch + 1) % 6})])")
        elif variant == 6:
            if self.program.features and {"tied"} & set(self.program.features):
                self.allow("shared between reentrant checkpoints")
            self.add(f"side.loss(model, {batch}, reentrant=True).backward()")
        elif variant == 7:
            self.add(
                f"inner = lambda: side.loss(model, {(batch + 1) % 6}, half=True).backward()",
                f"side.loss(model, {batch}, inside=inner).backward()",
            )
        elif variant == 8:
            self.add(f"torch.autograd.grad({loss}, [model.last.weight])", f"{loss}.backward()")
        elif variant == 9 and batch % 3 == 0:
            self.allow(GRAPH)
            self.add(f"{loss}.backward(create_graph=True)")
        else:
            self.add(f"{loss}.backward()")
        self.passed(times, held=variant == 1)
        self.look()

    def do_raise(self, variant: int, batch: int) -> None:
        """An exception on all ranks; then gradients are cleared, or simply the next pass starts anew."""
        place, after = 1 + variant % 3, variant // 3 % 5
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
            self.do_backward(0, (batch + 1) % 6)

    # Changing gradients

    def clear(self, variant: int) -> None:
        if self.keeping and variant in TO_NONE:
            self.add("side.let_go()")
            self.keeping, self.checks = False, True
        if variant not in TO_NONE and self.local and (self.delivered or self.old):
            self.allow(MIXED)
        self.add(CLEARS[variant])
        if variant in (2, 3, 8):
            self.used_extra = False
        if variant < 2:
            self.count, self.exact = 0, True
        elif self.count:
            self.exact = self.program.passes == 1
        self.zeros = variant not in TO_NONE and (self.holds or self.zeros)
        self.holds = self.local = self.old = False

    def do_clear(self, variant: int, batch: int) -> None:
        variant = (0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8)[variant % 13]
        self.clear(5 if self.unlike(CLEARS[variant]) else variant)

    def do_edit(self, variant: int, batch: int) -> None:
        variant %= len(EDITS)
        if not self.holds or (self.local and variant >= LINEAR) or self.unlike(EDITS[variant]):
            return
        if self.program.op == "Sum" and not self.delivered and not self.local:
            return
        if variant == len(EDITS) - 1 and self.program.op == "Sum":
            return
        if self.local:
            self.allow(MIXED if self.delivered or self.old else LOCAL)
        self.add(EDITS[variant])

    def do_clip(self, variant: int, batch: int) -> None:
        if not self.holds or (self.program.op == "Sum" and not self.delivered and not self.local):
            return
        if self.unlike(CLIPS[0]):
            return
        if self.local and variant % 4 == 3:
            self.add("side.synchronize(optimizers)", CLIPS[variant % 2])
            self.add("with side.skip_synchronize(optimizers):", "    for o in optimizers: o.step()")
            if self.program.optimizer == "LBFGS":
                del self.lines[-4:]
            else:
                self.stepped()
            return
        if self.local:
            self.allow(LOCAL)
        self.add(CLIPS[variant % 2])

    def do_assign(self, variant: int, batch: int) -> None:
        """Gradients of this rank's share, from torch.autograd.grad."""
        variant %= 6
        if self.delivered or (self.old and variant in (1, 3)):
            return
        if self.keeping and variant == 0:
            self.add("side.let_go()")
            self.keeping, self.checks = False, True
        self.add(f"for p, g in gradients(side.loss(model, {batch}), optimizers):")
        self.add(
            (
                "    p.grad = g",
                "    p.grad = g if p.grad is None or g is None else p.grad + g",
                "    if p.grad is None or g is None or g.is_sparse: p.grad = g\n        else: p.grad.copy_(g)",
                "    if p.grad is None or g is None or g.is_sparse: p.grad = g\n        else: p.grad.add_(g)",
                "    if p.grad is None or g is None or g.is_sparse: p.grad = g\n        else: p.grad.data = g",
                "    p.grad = None if g is None else g.clone()",
            )[variant]
        )
        self.used_extra |= not self.joined
        self.holds = self.local = True
        self.zeros = False

    def do_keep(self, variant: int, batch: int) -> None:
        if self.holds:
            what = "p.grad" if variant % 3 else "p.grad[:1] if not p.grad.is_sparse else p.grad"
            self.add(f"side.keep([{what} for p in present(optimizers)])")
            self.keeping = True

    # Steps

    def stepped(self) -> None:
        self.count, self.exact = 0, True
        self.local = self.delivered = False
        self.old = self.holds
        if self.program.op == "Sum" and self.old:  # an old gradient is not known to be a sum
            self.clear(0)

    def do_step(self, variant: int, batch: int) -> None:
        variant %= 8
        if self.program.optimizer == "LBFGS":
            variant = 7 if variant > 4 and not self.delivered else 6
        if variant < 5:
            self.add("for o in optimizers: o.step()")
            return self.stepped()
        if variant == 7 and self.delivered:
            variant = 6
        if self.keeping:
            self.add("side.let_go()")
            self.keeping, self.checks = False, True
        self.add("def closure():", "    for o in optimizers: o.zero_grad()", f"    loss = side.loss(model, {batch})")
        if variant == 7:
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
            self.add(f"scaler.scale(side.loss(model, {(batch + i) % 6}{how})).backward()")
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

    # All else

    def do_convert(self, variant: int, batch: int) -> None:
        variant %= 4 if self.program.optimizer == "LBFGS" else len(CONVERSIONS)
        self.single |= variant > 4
        self.half |= variant == 6
        self.add(CONVERSIONS[variant])

    def do_weights(self, variant: int, batch: int) -> None:
        self.add(WEIGHTS[variant % len(WEIGHTS)])

    def do_freeze(self, variant: int, batch: int) -> None:
        layer = ("first", "one", "two")[variant % 3]
        self.frozen ^= {layer}
        self.add(f"model.{layer}.requires_grad_({layer not in self.frozen})")

    def do_join(self, variant: int, batch: int) -> None:
        if not self.joined and self.program.optimizer != "LBFGS":
            self.add('optimizers[0].add_param_group({"params": list(model.extra.parameters())})')
            self.joined = True
            self.local |= self.used_extra
            self.holds |= self.used_extra

    def do_hook(self, variant: int, batch: int) -> None:
        variant %= len(HOOKS)
        if self.unlike(HOOKS[variant]):
            return
        if variant not in self.hooked and not (variant < 2 and self.program.optimizer == "LBFGS"):
            self.hooked.add(variant)
            self.add(HOOKS[variant])

    def do_rewrap(self, variant: int, batch: int) -> None:
        """A new optimizer for the same parameters; the older one is dropped, kept, or stepped once more."""
        if self.joined and "extra" in self.program.features:
            return
        if self.program.op == "Sum" or self.local:
            self.clear(0)
        if variant % 3:
            self.add("older = optimizers")
        self.wrap()
        self.hooked -= {0, 1}
        self.stepped()
        if variant % 3 == 2 and self.program.optimizer != "LBFGS":
            self.clear(0)
            for _ in range(self.program.passes):
                self.do_backward(0, batch)
            self.allow(OLDER)
            self.add("for o in older: o.step()")
            self.stepped()

    def do_save(self, variant: int, batch: int) -> None:
        lbfgs = self.program.optimizer == "LBFGS"
        variant %= 5
        if variant == 0:
            self.add("for o in optimizers: o.load_state_dict(saved(o.state_dict()))")
        elif variant == 1:
            self.add("model.load_state_dict(saved(model.state_dict()))")
        elif variant == 2 and not lbfgs:
            self.add("side.broadcast(model, optimizers)")
        elif variant == 3 and not lbfgs:  # of which torch makes no usable copy
            self.add("model, optimizers = copy.deepcopy((model, optimizers))")
            self.hooked = set()
            self.fresh()
        elif variant == 4 and not lbfgs:
            self.add("model, optimizers = pickle.loads(pickle.dumps((model, optimizers)))")
            self.add(f"optimizers = [side.wrap(o{self.options}) for o in optimizers]")
            self.hooked = set()
            self.fresh()
