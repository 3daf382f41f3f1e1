"""One tensor-parallel rank of the Llama in llama.py: logits of two steps, written to a file.

python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo rank.py CHECKPOINT RESULTS ID,ID,...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import paddle.distributed as dist
from llama import Llama, context_for, new_caches, step

from fd_core.models.config import load_config
from fd_core.paddle import TensorParallel, load


def main(folder: str, results: str, text: str) -> None:
    dist.init_parallel_env()
    rank, ids = dist.get_rank(), [int(word) for word in text.split(",")]
    config = load_config(Path(folder))
    model = Llama(context_for(config, tp=TensorParallel(rank, dist.get_world_size())), config)
    load(model, folder)
    caches = new_caches(model)
    parts = [step(model, caches, ids[:-1], 0), step(model, caches, ids[-1:], len(ids) - 1)]
    np.save(Path(results) / f"rank{rank}.npy", np.concatenate(parts))


if __name__ == "__main__":
    main(*sys.argv[1:])
