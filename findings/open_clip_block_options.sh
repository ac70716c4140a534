#!/usr/bin/env bash
# Expected: an option of the attention block in a model json, such as qk_norm, is used or refused.
# With "block_type": "default", or any other word but custom, it is left out without a word; with the
# custom block scaled_cosine_attn is built, and fails when the tower is run.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 timm==1.0.31
"$PYTHON" - <<'PYTHON'
import torch
from open_clip import CLIP

text = {"width": 32, "heads": 2, "layers": 1}


def norms(**options):
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, **options}
    model = CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)
    return model, [name for name, _ in model.visual.named_parameters() if "attn.ln_q" in name]


for block in (None, "custom", "default", "costum"):
    found = norms(qk_norm=True, block_type=block)[1]
    print("block_type", block, "norms of queries:", len(found))
    assert bool(found) == (block in (None, "custom"))
model, _ = norms(scaled_cosine_attn=True)
try:
    model.encode_image(torch.zeros(1, 3, 32, 32))
except RuntimeError as error:
    print("scaled_cosine_attn:", error)
    assert "must be a 3D tensor" in str(error)
else:
    raise SystemExit("scaled_cosine_attn runs")
PYTHON
