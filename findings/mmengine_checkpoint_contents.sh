#!/usr/bin/env bash
# Expected: the learning curves in a checkpoint of mmengine are numbers, so that torch's restricted
# reader takes it when the buffer's class and numpy's are allowed; and ema_state_dict holds the
# moving average. Each buffer is pickled with its methods, which needs builtins.getattr to be
# allowed, too; and EMAHook swaps: the average is the state_dict, ema_state_dict the other weights.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment mmengine==0.10.7 opencv-python==5.0.0.93 torch==2.14.1 numpy==2.4.6
cat > train.py <<'PYTHON'
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset


class Numbers(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.ones(2)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, *inputs, mode="loss"):
        return {"loss": self.linear(torch.stack(list(inputs))).mean()}


data = {"dataset": Numbers(), "batch_size": 2, "sampler": {"type": "DefaultSampler"}}
runner = Runner(
    model=Model(),
    work_dir="run",
    train_dataloader=data | {"collate_fn": {"type": "pseudo_collate"}},
    optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.5}},
    train_cfg={"by_epoch": True, "max_epochs": 2, "val_interval": 100},
    custom_hooks=[{"type": "EMAHook", "momentum": 0.5}],
)
runner.train()
torch.save(runner.model.linear.weight.detach(), "trained.pt")
PYTHON
"$PYTHON" train.py > log 2>&1 || { cat log; exit 1; }
"$PYTHON" - <<'PYTHON'
import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer

multiarray = np._core.multiarray
kinds = [type(np.dtype(kind)) for kind in ("f8", "i8")]
allowed = [HistoryBuffer, multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, *kinds]
with torch.serialization.safe_globals(allowed):
    missing = torch.serialization.get_unsafe_globals_in_checkpoint("run/epoch_2.pth")
    print("still refused:", missing)
    assert missing == ["builtins.getattr"]
with torch.serialization.safe_globals([*allowed, getattr]):
    content = torch.load("run/epoch_2.pth", weights_only=True)
trained = torch.load("trained.pt", weights_only=True)
average, other = content["state_dict"]["linear.weight"], content["ema_state_dict"]["module.linear.weight"]
print("trained", trained.tolist(), "state_dict", average.tolist(), "ema_state_dict", other.tolist())
assert torch.equal(other, trained) and not torch.equal(average, trained)
PYTHON
