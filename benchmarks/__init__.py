"""What is measured to develop ringreduce: aims, kernels, what training adds to memory. Not installed.

hosts.py, gpu.py, memory.py, idle.py are programs; what they share with users' measurements is in ringreduce.bench.
"""
