"""Says who is there, and runs one allreduce, one allgather and one broadcast.

Run it with `mpirun -np 4 python examples/hello_allreduce.py`.
"""

import torch

import ringreduce as rr


def main() -> None:
    rr.init()
    rank, size = rr.rank(), rr.size()
    print(f"rank {rank} of {size}, local rank {rr.local_rank()} of {rr.local_size()}", flush=True)

    total = rr.allreduce(torch.tensor([1.0, float(rank)]), op=rr.Sum)
    rows = rr.allgather(torch.full((rank + 1, 2), rank))  # ranks may give different numbers of rows
    word = rr.broadcast(torch.tensor([42 if rank == 0 else 0]), root_rank=0)

    if rank == 0:
        print(f"allreduce: {total[0]:.0f} ranks, whose numbers sum to {total[1]:.0f}")
        print(f"allgather: {rows.shape[0]} rows, first column {rows[:, 0].tolist()}")
        print(f"broadcast: every rank has rank 0's {word.item()}", flush=True)
    rr.shutdown()


if __name__ == "__main__":
    main()
