#!/usr/bin/env bash
# torch 2.14.1, DistributedDataParallel over gloo, three or more processes: the first backward after a
# model was wrapped gives other gradients than all later ones, of the same weights and the same batch.
#
# One would expect that a backward repeated on a CPU with one thread gives the same bits. Seen, for
# backwards 1 to 4 compared with the second:
#
#     2 processes    equal   equal  equal  equal
#     3 processes    differs equal  equal  equal    by about 1e-6
#     4 processes    differs equal  equal  equal
#
# After the first backward the reducer sorts parameters into new buckets, in the order in which their
# gradients arrived (`Reducer::rebuild_buckets` in torch/csrc/distributed/c10d/reducer.cpp). A ring sums
# each part of a bucket beginning with another process, so another layout is another order of additions;
# of two numbers there is only one order. A run that is resumed from a checkpoint has a first backward
# in its middle, and differs from a run that was not stopped, however much of its state was saved. One
# backward that leaves no trace, before the training begins, takes that away. Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy
cat >"$folder/run.py" <<'PY'
import json
import pathlib
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def work(rank, world, folder):
    store = dist.FileStore(f"{folder}/store{world}", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(37, 37) for _ in range(6)])
    model = DistributedDataParallel(net)
    batch = torch.randn(16, 37, generator=torch.Generator().manual_seed(rank))
    seen = []
    for _ in range(4):
        model.zero_grad()
        model(batch).square().sum().backward()
        seen.append(torch.cat([p.grad.reshape(-1) for p in net.parameters()]))
    if rank == 0:
        equal = [torch.equal(seen[1], one) for one in seen]
        pathlib.Path(f"{folder}/{world}.json").write_text(json.dumps(equal))
        print(f"{world} processes:", equal, f"by {float((seen[0] - seen[1]).abs().max()):.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    print("torch", torch.__version__)
    for world in (1, 2, 3, 4):
        mp.spawn(work, (world, sys.argv[1]), nprocs=world)
        equal = json.loads(pathlib.Path(f"{sys.argv[1]}/{world}.json").read_text())
        assert equal == [world < 3, True, True, True], equal
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/run.py" "$folder"
