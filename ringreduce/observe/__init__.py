"""`ringreduce stacks`, `ringreduce top`: jobs that run on this host, seen from outside.

jobs      which ranks there are; their status pages
commands  what is shown of them
"""
