"""Where this process stands: the running library, its process sets, MPI, the launcher, shared memory."""
