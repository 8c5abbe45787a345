"""A random training program as data, and how hypothesis draws it."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from net import BATCHES, FEATURES

Action = tuple[str, int, int]  # its name, which variant, which batch

LONGEST = 30  # actions
OPTIMIZERS = {
    "SGD": "torch.optim.SGD({}, lr=0.1)",
    "momentum": "torch.optim.SGD({}, lr=0.1, momentum=0.9, weight_decay=1e-3)",
    "AdamW": "torch.optim.AdamW({}, lr=0.02, eps=0.1)",
    "Adagrad": "torch.optim.Adagrad({}, lr=0.05, eps=0.1)",
    "LBFGS": 'torch.optim.LBFGS({}, lr=0.5, max_iter=4, line_search_fn="strong_wolfe")',
}
TAKE_SPARSE = ("SGD", "Adagrad")

# Each with how often it is drawn alone.
ALONE = {
    "backward": 6, "step": 3, "clear": 3, "edit": 4, "assign": 2, "clip": 2, "keep": 2, "raise": 2, "scaler": 1,
    "convert": 2, "freeze": 1, "join": 1, "save": 2, "hook": 2, "rewrap": 1, "weights": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Program:
    """`actions` is what is wanted: those that make no sense where they stand are left out by `source`."""

    actions: tuple[Action, ...] = ()
    optimizer: str = "SGD"
    features: tuple[str, ...] = ()
    double: bool = False  # float64 parameters
    two: bool = False  # two optimizers: of weights and of biases
    passes: int = 1  # backward_passes_per_step
    op: str = "Average"
    groups: int = 0  # num_groups
    predivide: bool = False
    sparse_as_dense: bool = False
    process_set: str = "all"  # or "mine": two sets side by side; or "part": the last rank trains alone
    named: bool = False
    early_hook: int = 0  # a hook on a gradient that is there before the optimizer is wrapped


def programs() -> st.SearchStrategy[Program]:
    """Programs of up to 30 actions."""
    return st.builds(
        Program,
        actions=_actions(),
        optimizer=st.sampled_from(list(OPTIMIZERS)),
        features=st.lists(st.sampled_from(FEATURES), unique=True).map(lambda names: tuple(sorted(names))),
        double=st.booleans(),
        two=_seldom(True, False),
        passes=st.sampled_from((1, 1, 2, 3)),
        op=_seldom("Sum", "Average"),
        groups=st.sampled_from((0, 1, 4)),
        predivide=_seldom(True, False),
        sparse_as_dense=_seldom(True, False),
        process_set=st.sampled_from(("all", "all", "all", "mine", "part")),
        named=st.booleans(),
        early_hook=st.sampled_from((0, 0, 0, 1, 2, 3)),
    )


def _actions() -> st.SearchStrategy[tuple[Action, ...]]:
    def one(*names: str) -> st.SearchStrategy[tuple[Action, ...]]:
        return st.tuples(st.tuples(st.sampled_from(names), st.integers(0, 23), st.integers(0, BATCHES - 1)))

    alone = one(*(name for name, weight in ALONE.items() for _ in range(weight)))
    iteration = st.tuples(one("clear"), one("backward"), one("edit", "clip", "keep", "backward"), one("step"))
    parts = st.lists(st.one_of(alone, alone, iteration.map(_joined)), max_size=20)
    return parts.map(lambda parts: _joined(parts)[:LONGEST])


def _joined(parts: object) -> tuple[Action, ...]:
    return tuple(action for part in parts for action in part)  # type: ignore[attr-defined]


def _seldom(rare: object, usual: object) -> st.SearchStrategy:
    return st.sampled_from((usual, usual, usual, rare))
