#!/usr/bin/env bash
# Expected: an image tower reads all pixels of an image of its own size, or refuses it. The SigLIP
# towers of 384 pixels with patches of 14 leave out the last 6 rows and columns without a word; the
# same network made for images of any size refuses that size.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import timm
import torch

NAME = "vit_so400m_patch14_siglip_384"
torch.manual_seed(0)
network = timm.create_model(NAME, depth=1, num_classes=0).eval()
size = network.pretrained_cfg["input_size"][-1]
image = torch.randn(1, 3, size, size)
changed = image.clone()
changed[..., 378:, :] = changed[..., :, 378:] = 9
with torch.no_grad():
    same = torch.equal(network(image), network(changed))
    changed[..., 377, :] = 9
    other = torch.equal(network(image), network(changed))
print("own size", size, "patches", network.patch_embed.grid_size)
print("equal without the last 6 pixels:", same, "without the last 7:", other)
assert (size, same, other) == (384, True, False)
dynamic = timm.create_model(NAME, depth=1, num_classes=0, dynamic_img_size=True).eval()
try:
    dynamic(image)
except AssertionError as error:
    print("dynamic_img_size:", error)
else:
    raise SystemExit("dynamic_img_size takes 384 pixels")
PYTHON
