#!/usr/bin/env bash
# Expected: the zeros behind a prompt's end mean nothing. In text towers without a causal mask
# (no_causal_mask: MobileCLIP, SigLIP) nothing masks them: another padding, and a prompt that is cut
# at its end to save time, get another vector. With the causal mask of CLIP padding has no effect.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 timm==1.0.31
"$PYTHON" - <<'PYTHON'
import json
from pathlib import Path

import open_clip
import torch

tokens = open_clip.get_tokenizer("ViT-B-32")(["a photo of a cat"])
end = int(tokens.argmax()) + 1
other = tokens.clone()
other[:, end:] = 320
names = [n for n in open_clip.list_models() if "hf_model_name" not in str(open_clip.get_model_config(n))]
free = [n for n in names if open_clip.get_model_config(n)["text_cfg"].get("no_causal_mask")]
print(len(free), "models without a causal mask:", ", ".join(free[:6]), "...")
assert "MobileCLIP-S1" in free
found = {}
for no_mask in (False, True):
    torch.manual_seed(0)
    tower = open_clip.transformer.TextTransformer(
        width=64, heads=2, layers=2, output_dim=32, no_causal_mask=no_mask
    ).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        found[no_mask] = float(torch.cosine_similarity(tower(tokens), tower(other)))
        if no_mask:
            cut = float(torch.cosine_similarity(tower(tokens), tower(tokens[:, :end])))
            print(f"no_causal_mask True: cosine to the cut prompt {cut:.4f}")
    print(f"no_causal_mask {no_mask}: cosine to other padding {found[no_mask]:.4f}")
assert found[False] > 0.99999 and found[True] < 0.99 and cut < 0.99
PYTHON
