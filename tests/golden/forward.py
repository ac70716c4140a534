"""Groups of the forward pass up to the full-resolution logits."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from golden.models import Workspace
from golden.report import Report
from tagclip.checkpoint.conversion.mmseg import trained_tensors
from tagclip.modeling.heads.mask_decoder import MaskDecoder

__all__ = ["check_backbone", "check_decoder", "check_other_heads"]


class Recorder(ExitStack):
    """Collects inputs and outputs of modules while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def watch(self, name: str, module: nn.Module) -> None:
        """Keep the first input and the output of every later call under ``name``."""

        def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs[name], self.outputs[name] = args[0], output

        self.callback(module.register_forward_hook(keep).remove)


@torch.no_grad()
def check_backbone(space: Workspace, model: nn.Module, report: Report) -> dict[str, Tensor]:
    """Compare tokens, blocks, norms and outputs; return the features of ``inputs/image``."""
    backbone = model.backbone
    images = space.golden.input("image")
    report.close("eval/tokens_before_ln_pre", backbone.embed(images)[0])
    with Recorder() as seen:
        seen.watch("ln_pre", backbone.ln_pre)
        for index, block in enumerate(backbone.blocks):
            seen.watch(f"block{index}", block)
        features = backbone(images)
    report.close("eval/tokens_after_ln_pre", seen.outputs["ln_pre"])
    last = len(backbone.blocks) - 1
    required = ("eval/block0_in", f"eval/block{last}_out")
    for key in space.golden.keys(r"eval/block\d+_(in|out)", *required):
        name, _, side = key.removeprefix("eval/").rpartition("_")
        tokens = (seen.inputs if side == "in" else seen.outputs).get(name)
        report.close(key, torch.empty(0) if tokens is None else tokens)
    # The model drops the prompts behind the last block; the official one keeps them to the end.
    normed = backbone.prompts.norm(seen.outputs[f"block{last}"])
    report.close("eval/prompt_norm_out", normed)
    report.close("eval/ln_post_out", backbone.ln_post(normed))
    report.close("eval/dense", features["clip_dense"])
    report.close("eval/cls", features["clip_global"])
    other = space.golden.input("other_image")
    report.close("backbone_other/tokens_before_ln_pre", backbone.embed(other)[0])
    outputs = backbone(other)
    report.close("backbone_other/dense", outputs["clip_dense"])
    report.close("backbone_other/cls", outputs["clip_global"])
    return features


@torch.no_grad()
def check_decoder(
    space: Workspace, model: nn.Module, features: dict[str, Tensor], report: Report
) -> None:
    """Compare relation, decoder layers and logits of the trained head, all classes asked."""
    head = model.sem_seg_head
    with Recorder() as seen:
        seen.watch("relation", head.relation)
        for index, layer in enumerate(head.decoder.layers):
            seen.watch(f"layer{index}", layer)
        seen.watch("logits", head.decoder.logits)
        (class_logits, trusty_logits), _ = head(features, model.text_bank(space.vocabulary))
    queries = seen.outputs["relation"]
    report.close("eval/relationship", queries)
    memory = features["clip_dense"].flatten(2).transpose(1, 2)
    last = len(space.letters) - 1
    for index in range(last + 1):
        # What the last layer makes of its queries, and the logits of the others, only exist in
        # a deeper or shallower decoder with the same weights.
        if index < last:
            output = seen.outputs[f"layer{index}"]
            attention = decoder(space, space.letters[: index + 1])(queries, memory)
        else:
            output = layer_output(space, queries, memory)
            attention = seen.outputs["logits"]
        report.close(f"eval/layer{index}_query", output)
        report.close(f"eval/layer{index}_attn", attention)
    report.close("eval/mask_logits_lowres", torch.cat([class_logits, trusty_logits], dim=1))


def decoder(space: Workspace, letters: str) -> MaskDecoder:
    """The official decoder cut after, or continued behind, its last layer."""
    config = space.golden.config
    module = MaskDecoder(
        dim=config("out_dim"), num_heads=config("dec_heads"), layers=letters, dropout=0.0
    )
    tensors, _ = trained_tensors(space.golden.tree("state_dict"), letters)
    prefix = "sem_seg_head.decoder."
    state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    missing, unknown = module.load_state_dict(state, strict=False)
    # Only the layer behind the official ones has no weights.
    assert not unknown and (not missing or len(letters) > len(space.letters)), (missing, unknown)
    return module.eval()


def layer_output(space: Workspace, queries: Tensor, memory: Tensor) -> Tensor:
    """Output of the official last layer, which its own logits do not need."""
    deeper = decoder(space, f"{space.letters}n")
    with Recorder() as seen:
        seen.watch("last", deeper.layers[-1])
        deeper(queries, memory)
    return seen.outputs["last"]


@torch.no_grad()
def check_other_heads(
    space: Workspace, model: nn.Module, features: dict[str, Tensor], report: Report
) -> None:
    """Compare low-resolution logits when only seen classes are asked, and of the other heads."""
    head, vectors = model.sem_seg_head, model.text_bank(space.seen)
    report.close("eval/seen_only/mask_logits_lowres", torch.cat(head.layers(features, vectors), 1))
    vectors = model.text_bank(space.vocabulary)
    for key, other in (
        ("eval_nodisc/mask_logits_lowres", space.model(token=False)),
        ("zegclip_eval/mask_logits_lowres", space.model(token=False, zegclip=True)),
    ):
        report.close(key, other.sem_seg_head.layers(features, vectors)[0])
