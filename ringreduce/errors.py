"""The exceptions of ringreduce.

Exception
├── ValueError, TypeError        a caller's mistake, raised on the calling rank alone:
│                                names the argument, what was given, what is allowed
├── AssertionError               DistributedOptimizer used out of order (zero_grad() during
│                                a reduction, more backward passes than announced)
└── RuntimeError
    └── RingreduceError          ranks that disagree, a peer that is lost, use before init()
        │                        or after shutdown(): raised on every rank that takes part
        ├── RankLostError        a rank has died, or has shut down while others wait for it; says why, if it could tell
        ├── RingreduceTimeoutError   a deadline passed; the operation is still in flight
        ├── PlanLeftError        a rank's backward pass has failed; the next one begins anew
        └── DriftError               the ranks hold different parameters (RINGREDUCE_DRIFT=error, check())
"""

from ringreduce._core import PlanLeftError, RankLostError, RingreduceError, RingreduceTimeoutError

__all__ = ["DriftError", "PlanLeftError", "RankLostError", "RingreduceError", "RingreduceTimeoutError"]


class DriftError(RingreduceError):
    """The ranks hold different parameters, or whatever `check` was asked to compare; the same text on all ranks."""
