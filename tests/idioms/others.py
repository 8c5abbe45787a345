"""What programs do to the model and to the optimizer."""

from __future__ import annotations

from writer import Writer

OLDER = "step() of an optimizer whose parameters another one has taken over"
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


class Others(Writer):
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
        if variant % 3 == 2 and batch == 0 and self.program.optimizer != "LBFGS":  # seldom: it is an error
            self.clear(0)
            self.add(*[f"side.loss(model, {batch}).backward()"] * self.program.passes)
            self.passed(self.program.passes)
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
