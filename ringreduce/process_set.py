"""Process sets; ringreduce exports them too."""

from ringreduce._runtime.process_set import ProcessSet, global_process_set

__all__ = ["ProcessSet", "global_process_set"]
