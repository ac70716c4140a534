#!/usr/bin/env bash
# Expected: the published weights of a model have the activation that its config has, or a second
# name of the model, with or without the suffix -quickgelu, has it. Of roberta-ViT-B-32 the config
# says QuickGELU and its only tag does not, and there is no second name: open_clip builds QuickGELU
# with a warning.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 timm==1.0.31
"$PYTHON" - <<'PYTHON'
import open_clip

alone = []
for name, tag in open_clip.list_pretrained():
    config = bool(open_clip.get_model_config(name).get("quick_gelu"))
    trained = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    other = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
    if config != trained and (other == name or other not in open_clip.list_models()):
        alone.append((name, tag))
        print(name, tag, "quick_gelu of the config", config, "of the weights", trained)
assert alone == [("roberta-ViT-B-32", "laion2b_s12b_b32k")]
PYTHON
