#!/usr/bin/env bash
# Expected: pool_type "eos" reads a text at its end token, or says that there is none. eos_id is 2 by
# default, which CLIP's byte pairs use for a letter: without that letter the tower reads position 0,
# the start token, which sees nothing else under a causal mask. All texts have one vector.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 timm==1.0.31
"$PYTHON" - <<'PYTHON'
import open_clip
import torch

tokens = open_clip.get_tokenizer("ViT-B-32")(["a cat", "a dining table"])
found = {}
for eos_id in (2, 49407):
    torch.manual_seed(0)
    tower = open_clip.transformer.TextTransformer(
        width=64, heads=2, layers=2, output_dim=32, pool_type="eos", eos_id=eos_id
    ).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        cat, table = tower(tokens)
    found[eos_id] = float((cat - table).abs().max())
    print(f"eos_id {eos_id}: two texts differ by {found[eos_id]:.4f}")
assert found[2] == 0 and found[49407] > 0.01
PYTHON
