"""The parts of benchmarks/gpu.py: jobs says which there are, clock and device are what they measure with."""
